"""What a CLIP's configuration and weights must be; sizes are held against the file before anything is allocated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from un2clip.config import record
from un2clip.errors import UserError

TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language")
LARGEST_IMAGE = 10_000  # pixels of a side; the positions of a larger one would fill the memory


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`model_cfg` of open_clip_config.json, as far as it is the same in every architecture."""

    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """open_clip_config.json: the model, and how its images are prepared."""

    model_cfg: ModelConfig
    preprocess_cfg: dict[str, Any]


def check_sizes(config: Mapping[str, Any], file: Path) -> None:
    """Refuse a configuration of a larger model than its weights are: one wrong digit would fill the memory.

    Args:
        config: content of open_clip_config.json.
        file: of safetensors.

    Raises:
        UserError: a part of the configuration is missing or mistyped, or a size is not in the file.
    """
    model = record(ModelConfig, config.get("model_cfg"), "model_cfg")
    record(ClipConfig, {**config, "model_cfg": vars(model)}, "open_clip_config")
    with safe_open(file, framework="pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]
    largest = max((side for shape in shapes for side in shape), default=0)
    numbers = sum(math.prod(shape) for shape in shapes)
    for tower, sizes in (("vision_cfg", model.vision_cfg), ("text_cfg", model.text_cfg)):
        for key, size in ({"embed_dim": model.embed_dim} | sizes).items():
            most = LARGEST_IMAGE if key == "image_size" else largest
            if type(size) is int and size > most:
                raise UserError(f"{tower}.{key} is {str(size)[:20]}, and no weight has more than {most}")
        width, layers = sizes.get("width"), sizes.get("layers")
        # each layer has four matrices of its width at least, those of its attention
        if type(width) is int and type(layers) is int and 4 * width**2 * layers > numbers:
            raise UserError(f"{tower} says {layers} layers of width {width}, and there are {numbers} weights in all")


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse weights with a NaN or an infinity among them, naming the first tensor."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name}: {key} is not finite; the file is damaged or of a training that failed")


def check_config(model_cfg: Any, name: str) -> None:
    """Refuse a configuration that would run code of its folder, or have open_clip fetch what nobody pinned."""
    if not isinstance(model_cfg, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model_cfg.keys():
        raise UserError(f"{name}: model_cfg of open_clip_config.json must have embed_dim, vision_cfg and text_cfg")
    options = model_cfg["text_cfg"].get("tokenizer_kwargs") or {} if isinstance(model_cfg["text_cfg"], dict) else None
    if not isinstance(options, dict) or not isinstance(model_cfg["vision_cfg"], dict):
        raise UserError(f"{name}: vision_cfg, text_cfg and tokenizer_kwargs of open_clip_config.json must be mappings")
    if foreign := [key for key in options if key not in TOKENIZER_OPTIONS]:
        raise UserError(f"{name}: tokenizer_kwargs may hold {', '.join(TOKENIZER_OPTIONS)}, got {foreign[0]}")
    if model_cfg["text_cfg"].get("hf_model_name"):
        raise UserError(f"{name}: a text tower from the hub (hf_model_name) is not supported; its weights are not here")
    if ":" in str(model_cfg["vision_cfg"].get("timm_model_name")):
        raise UserError(f"{name}: timm_model_name must be an architecture's plain name, without a ':'")
