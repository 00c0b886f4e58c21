"""The image tower in Hugging Face's own class: CLIPVisionModelWithProjection, as a diffusers pipeline holds it."""

from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from un2clip.checkpoint import Clip
from un2clip.config import UserError


@torch.no_grad()
def to_hugging_face_vision(clip: Clip) -> CLIPVisionModelWithProjection:
    """Convert open_clip's VisionTransformer; the two give the same embedding within 1e-5 in fp32.

    Raises:
        UserError: the tower is not a plain ViT.
    """
    visual = clip.model.visual
    vision_cfg = clip.config["model_cfg"]["vision_cfg"]
    if not hasattr(visual, "conv1") or not hasattr(visual, "class_embedding"):
        raise UserError(f"only a ViT tower converts to CLIPVisionModelWithProjection, got {type(visual).__name__}")
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=vision_cfg["width"],
            intermediate_size=visual.transformer.resblocks[0].mlp.c_fc.out_features,
            num_hidden_layers=vision_cfg["layers"],
            num_attention_heads=visual.transformer.resblocks[0].attn.num_heads,
            image_size=vision_cfg["image_size"],
            patch_size=vision_cfg["patch_size"],
            projection_dim=clip.embed_dim,
            hidden_act="quick_gelu" if clip.config["model_cfg"].get("quick_gelu") else "gelu",
        )
    )
    source = visual.state_dict()
    state: dict[str, Any] = {
        "embeddings.class_embedding": source["class_embedding"],
        "embeddings.patch_embedding.weight": source["conv1.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
    }
    state |= _layer_norm("pre_layrnorm", source, "ln_pre") | _layer_norm("post_layernorm", source, "ln_post")
    for i in range(vision_cfg["layers"]):
        block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for name in ("weight", "bias"):
            q, k, v = source[f"{block}.attn.in_proj_{name}"].chunk(3)
            state |= {f"{layer}.self_attn.{part}_proj.{name}": value for part, value in (("q", q), ("k", k), ("v", v))}
            state[f"{layer}.self_attn.out_proj.{name}"] = source[f"{block}.attn.out_proj.{name}"]
            state[f"{layer}.mlp.fc1.{name}"] = source[f"{block}.mlp.c_fc.{name}"]
            state[f"{layer}.mlp.fc2.{name}"] = source[f"{block}.mlp.c_proj.{name}"]
        state |= _layer_norm(f"{layer}.layer_norm1", source, f"{block}.ln_1")
        state |= _layer_norm(f"{layer}.layer_norm2", source, f"{block}.ln_2")
    state = {f"vision_model.{name}": value for name, value in state.items()}
    state["visual_projection.weight"] = source["proj"].T.contiguous()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)
    return model.eval()


def _layer_norm(name: str, source: dict[str, Any], from_name: str) -> dict[str, Any]:
    return {f"{name}.{part}": source[f"{from_name}.{part}"] for part in ("weight", "bias")}
