"""CLIPs of the real families at toy width: open_clip's own classes, random weights."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from un2clip.models.converting import new_model

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "two", "of"]
TEXTS = ["a red circle", "Two blue squares, of a square!"]


@register_model
def vit_toy_siglip(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """As timm's vit_so400m_patch14_siglip_384: no class token, MAP pooling, LayerNorm with eps 1e-6."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=3.7362, class_token=False,
        **{"global_pool": "map", **{key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}},
    )  # fmt: skip


def _clip_cfg(quick_gelu: bool) -> dict[str, Any]:
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2}  # heads are 64 wide, as OpenAI's
    text_cfg = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    cfg = {"embed_dim": 32, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    return cfg | ({"quick_gelu": True} if quick_gelu else {})


MODEL_CFG: dict[str, dict[str, Any]] = {
    "gelu": _clip_cfg(False),
    "quickgelu": _clip_cfg(True),
    "siglip": {  # key for key as ViT-SO400M-14-SigLIP-384
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_toy_siglip",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": len(WORDS),
            "hf_tokenizer_name": "org/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 3.7362,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
}
OPENAI = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
PREPROCESS_CFG = {
    "gelu": OPENAI | {"interpolation": "bicubic", "resize_mode": "shortest"},
    "quickgelu": OPENAI | {"interpolation": "bicubic", "resize_mode": "shortest"},
    "siglip": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}
FAMILIES = tuple(MODEL_CFG)


def model_of(family: str, seed: int = 0) -> CLIP | CustomTextCLIP:
    """Random weights; towers whose biases and norms are not at their starting values, so that none may be lost."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = new_model(MODEL_CFG[family]).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * (0.2 if family == "siglip" else 0.05))
    return model


def write_folder(folder: Path, family: str, seed: int = 0) -> CLIP | CustomTextCLIP:
    """An open_clip folder as the hub has it: configuration, weights, and SigLIP's tokenizer."""
    model = model_of(family, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CFG[family], "preprocess_cfg": PREPROCESS_CFG[family]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    if family == "siglip":
        write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A fast tokenizer that, like SigLIP's, does not lower its text, ends with </s> and fills up with padding."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
