"""A CLIP in Hugging Face's own classes: CLIPModel or SiglipModel, with processor and tokenizer.

Neither library ships a converter, so the names are mapped here, layer by layer. What has no counterpart is refused by
name: a part of the architecture, or a tensor that the tables of state_dicts do not read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from un2clip.errors import UserError
from un2clip.files.outputs import permit
from un2clip.models.clip import Clip
from un2clip.models.plain import (
    Text,
    activation_of,
    clip_obstacles,
    eps_of,
    image_obstacles,
    is_siglip,
    plain_state,
    text_obstacles,
    text_of,
)
from un2clip.models.state_dicts import (
    Reading,
    State,
    clip_state,
    clip_vision_state,
    siglip_state,
    without_layer_scale,
)
from un2clip.models.tokenizing import bpe_tokenizer, special_ids, tokenizer_of

__all__ = ["bpe_tokenizer", "image_processor", "save_hugging_face", "to_hugging_face", "to_hugging_face_vision"]
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def save_hugging_face(clip: Clip, folder: Path) -> None:
    """Write a folder for AutoModel, AutoProcessor, and for CLIPVisionModel and CLIPImageProcessor as LLaVA asks."""
    model = to_hugging_face(clip)
    images = image_processor(clip)
    processor_class = CLIPProcessor if isinstance(model, CLIPModel) else SiglipProcessor
    model.save_pretrained(folder)
    processor_class(images, tokenizer_of(clip)).save_pretrained(folder)
    images.save_pretrained(folder)  # LLaVA reads preprocessor_config.json
    permit(folder)


@torch.no_grad()
def to_hugging_face(clip: Clip) -> PreTrainedModel:
    """Convert both towers.

    Raises:
        UserError: a tower is neither a plain ViT with CLIP's text transformer nor SigLIP's; names what is not.
    """
    if is_siglip(clip):
        _refuse(_siglip_obstacles(clip), "SiglipModel")
        text, vision = _siglip_configs(clip)
        model: PreTrainedModel = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        return _filled(model, siglip_state, without_layer_scale(clip.model.state_dict()))
    _refuse(clip_obstacles(clip), "CLIPModel")
    text_config, vision_config = _text_config(clip), _vision_config(clip)
    model = CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=clip.embed_dim))
    return _filled(model, clip_state, plain_state(clip))


@torch.no_grad()
def to_hugging_face_vision(clip: Clip) -> CLIPVisionModelWithProjection:
    """Convert the image tower alone, as a StableUnCLIPImg2ImgPipeline holds it.

    Raises:
        UserError: the tower is not a plain ViT; names what is not.
    """
    _refuse(image_obstacles(clip.model.visual), "CLIPVisionModelWithProjection")
    model = CLIPVisionModelWithProjection(_vision_config(clip))
    state = without_layer_scale(clip.model.visual.state_dict())
    filled: CLIPVisionModelWithProjection = _filled(model, clip_vision_state, state)
    return filled


def image_processor(clip: Clip) -> CLIPImageProcessor | SiglipImageProcessor:
    """The model's own preprocessing in Hugging Face's class."""
    cfg: Mapping[str, Any] = clip.model.visual.preprocess_cfg
    mode, (height, width) = cfg["resize_mode"], clip.image_size
    if cfg["interpolation"] not in RESAMPLING or mode not in ("shortest", "squash") or height != width:
        how = f"{mode}, {cfg['interpolation']} to {height} x {width}"
        raise UserError(f"Hugging Face's processors do not resize like {how}; use --format=open_clip")
    square = {"height": height, "width": width}
    statistics = {f"image_{key}": _of_channels(cfg[key]) for key in ("mean", "std")}
    given = {**statistics, "resample": RESAMPLING[cfg["interpolation"]]}
    if is_siglip(clip) and mode == "squash":
        return SiglipImageProcessor(size=square, **given)
    if mode == "squash":
        return CLIPImageProcessor(size=square, do_center_crop=False, **given)
    return CLIPImageProcessor(size={"shortest_edge": height}, crop_size=square, **given)


def _of_channels(value: Any) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value] * 3


def _filled(model: PreTrainedModel, table: Callable[[State], State], source: State) -> Any:
    """The model with the weights of a state of open_clip's; every tensor of the state must have its place."""
    name, reading = type(model).__name__, Reading(source)
    try:
        state = table(reading)
    except KeyError as missing:
        raise UserError(f"{name} needs {missing}, which this model does not have; use --format=open_clip") from None
    if unread := list(reading.unread()):
        raise UserError(f"{name} has no place for {', '.join(unread[:3])} of this model; use --format=open_clip")
    model.load_state_dict(state)
    return model.eval()


def _refuse(obstacles: list[str], name: str) -> None:
    if obstacles:
        raise UserError(f"{name} cannot be this model: {', '.join(obstacles)}; use --format=open_clip")


def _vision_config(clip: Clip) -> CLIPVisionConfig:
    visual = clip.model.visual
    block = visual.transformer.resblocks[0]
    return CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        projection_dim=clip.embed_dim,
        **_common(visual, "image", visual.transformer),
    )


def _text_config(clip: Clip) -> CLIPTextConfig:
    text = text_of(clip.model)
    assert text is not None
    block = text.transformer.resblocks[0]
    begin, end = special_ids(clip)
    end = end if text.pool == "argmax" else text.eos
    return CLIPTextConfig(
        vocab_size=text.vocabulary,
        hidden_size=block.attn.embed_dim,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(text.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=text.context,
        projection_dim=clip.embed_dim,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
        **_common(nn.ModuleList([text.transformer, text.ln_final]), "text", text.transformer),
    )


def _common(tower: nn.Module, which: str, blocks: nn.Module) -> dict[str, Any]:
    """Activation and epsilon, of which Hugging Face has one for a tower."""
    activation, eps = activation_of(blocks), eps_of(tower)
    if not activation or eps != eps:
        what = "one activation, a GELU" if not activation else "one epsilon in all norms"
        raise UserError(f"Hugging Face's classes cannot be this model: its {which} tower has not {what}")
    return {"hidden_act": activation, "layer_norm_eps": eps}


def _siglip_obstacles(clip: Clip) -> list[str]:
    trunk, text, visual = clip.model.visual.trunk, text_of(clip.model), clip.model.visual
    if text is None:
        return text_obstacles(text)
    if getattr(trunk, "attn_pool", None) is None:
        return [f"its image tower, timm's {type(trunk).__name__}, has no pooling by attention"]
    found = [
        ("its image tower has a class token", getattr(trunk, "cls_token", None) is not None),
        ("its image tower has a head behind the pooling", bool(list(visual.head.parameters()))),
        ("its text tower has a causal mask", text.mask is not None),
        (f"its text tower pools by the {text.pool} token", text.pool != "last"),
        ("its text tower has a class token of its own", text.own),
        ("its text projection has no bias", not isinstance(text.projection, nn.Linear)),
        ("it has no logit bias", clip.model.logit_bias is None),
        ("its tokenizer is CLIP's", not isinstance(clip.tokenize, HFTokenizer)),
    ]
    return [clause for clause, holds in found if holds]


def _siglip_configs(clip: Clip) -> tuple[SiglipTextConfig, SiglipVisionConfig]:
    trunk, text = clip.model.visual.trunk, text_of(clip.model)
    assert isinstance(text, Text)
    tokenizer = tokenizer_of(clip)
    block, text_block = trunk.blocks[0], text.transformer.resblocks[0]
    text_config = SiglipTextConfig(
        vocab_size=text.vocabulary,
        hidden_size=text_block.attn.embed_dim,
        intermediate_size=text_block.mlp.c_fc.out_features,
        num_hidden_layers=len(text.transformer.resblocks),
        num_attention_heads=text_block.attn.num_heads,
        max_position_embeddings=text.context,
        projection_size=clip.embed_dim,
        **_common(nn.ModuleList([text.transformer, text.ln_final]), "text", text.transformer),
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")},
    )
    vision_config = SiglipVisionConfig(
        hidden_size=trunk.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=trunk.patch_embed.img_size[0],
        patch_size=trunk.patch_embed.patch_size[0],
        **_common(trunk, "image", trunk),
    )
    return text_config, vision_config
