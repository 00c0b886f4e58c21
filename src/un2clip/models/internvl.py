"""InternVL's image tower and connector in the place of a CLIP: UniLIP's encoder (arXiv 2507.23278).

It gives tokens alone, as InternVL's language model reads them: patches merged two by two, and through the connector. It
has no pooled embedding and no text tower. The classes are transformers' own, without the language model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLModel, Qwen2Config

from un2clip.errors import UserError, cause
from un2clip.files.outputs import save_tensors
from un2clip.files.texts import parse_json
from un2clip.models.adapting import load_strictly

#: Name in `backbones.encoder.architecture` -> width of the language model's tokens. The image tower is InternViT-300M,
#: which both have and whose sizes are the defaults of transformers' configuration, but for the attention's biases.
KNOWN = {"InternVL3-1B": 896, "InternVL3-2B": 1536}
PARTS = ("vision_tower.", "multi_modal_projector.")
#: How UniLIP prepares an image (its code): the shortest side, the middle, ImageNet's mean and deviation; no tiles.
PREPARED: Mapping[str, Any] = {
    "mode": "RGB", "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "interpolation": "bicubic",
    "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip


class InternVit(InternVLModel):
    """Image tower and connector: pixel_values (B, 3, H, W) -> tokens (B, h * w, C) in reading order.

    A token stands for 2 x 2 patches of 14 px. H = W may be any multiple of that: positions are interpolated, by
    transformers' own code.

    Args:
        config: content of an InternVL's config.json.
    """

    tokens_only = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        full = InternVLConfig.from_dict(dict(config))
        width = full.text_config.hidden_size
        # a language model of no size: the class wants one, and it goes
        full.text_config = Qwen2Config(
            hidden_size=width, intermediate_size=1, vocab_size=1, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1,
        )  # fmt: skip
        super().__init__(full)
        del self.language_model
        self.preprocess_cfg = {**PREPARED, "size": list(full.vision_config.image_size)}
        self.image_size = tuple(full.vision_config.image_size)
        merged = round(1 / full.downsample_ratio)
        self.patch_size = tuple(merged * side for side in full.vision_config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        given = self.get_image_features(
            pixel_values, vision_feature_layer=-1, vision_feature_select_strategy="default", return_dict=True
        )
        tokens: Tensor = given.pooler_output
        return tokens

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As open_clip's towers have it."""
        if enable:
            self.vision_tower.activation_checkpointing_enable()
        else:
            self.vision_tower.activation_checkpointing_disable()


class Textless(nn.Module):
    """Where open_clip's model holds both towers: the image tower alone."""

    def __init__(self, visual: InternVit) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, pixel_values: Tensor) -> NoReturn:
        raise UserError(
            "InternVL's encoder has no embedding that texts could be compared with; benchmark reconstruction measures "
            "it, and `un2clip export --format=internvl` writes it for an InternVL"
        )

    encode_text = encode_image


def internvl_config(architecture: str) -> dict[str, Any]:
    """The content of config.json of one of KNOWN, as far as image tower and connector go."""
    config = InternVLConfig(
        vision_config={"attention_bias": True}, text_config={"model_type": "qwen2", "hidden_size": KNOWN[architecture]}
    )
    return dict(config.to_dict())


def clip_config(internvl: Mapping[str, Any]) -> dict[str, Any]:
    """The content of open_clip_config.json for an InternVL's config.json: it says that no class of open_clip's fits."""
    try:
        full = InternVLConfig.from_dict(dict(internvl))
        size, width = list(full.vision_config.image_size), full.text_config.hidden_size
    except Exception as error:  # its checks are its own
        raise UserError(f"this config.json is no InternVL's: {type(error).__name__}: {cause(error)}") from None
    config = {"embed_dim": width, "internvl": full.to_dict()}
    return {"model_cfg": config, "preprocess_cfg": {**PREPARED, "size": size}}


def new_textless(config: Mapping[str, Any], file: Path | None = None) -> Textless:
    """The untrained model of an open_clip_config.json of `clip_config`.

    Args:
        file: its weights; a configuration of a larger model than these is refused before anything is allocated.
    """
    internvl = config["model_cfg"]["internvl"]
    if file is not None:
        _check_sizes(internvl, file)
    with torch.random.fork_rng(devices=[]):
        try:
            return Textless(InternVit(internvl))
        except Exception as error:  # a broken configuration raises nearly anything in transformers
            raise UserError(
                f"transformers cannot build this InternVL: {type(error).__name__}: {cause(error)}"
            ) from None


def internvl_state(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors of image tower and connector out of an InternVL's folder, named as Textless has them; float32.

    The language model's, which are most, are not read.

    Raises:
        UserError: no file holds any; or they are of the layout that InternVL's own code has.
    """
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else [folder]
    try:
        found = dict(_picked(files))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name}: cannot read {folder}: {cause(error)}") from None
    if not found:
        raise UserError(
            f"{name}: {folder} has no tensors of an InternVL as transformers names them ({', '.join(PARTS)}); take the "
            "repository whose name ends in -hf"
        )
    return found


def save_internvl(clip: Any, folder: Path) -> None:
    """Write image tower and connector as transformers names them in an InternVL: config.json and model.safetensors.

    The language model is not in it: `InternVLModel.from_pretrained` begins a new one, and
    `load_state_dict(..., strict=False)` puts the tensors into an InternVL of the same sizes.

    Args:
        clip: of load_clip, with an encoder of InternVL's.

    Raises:
        UserError: transformers reads another encoder back.
    """
    visual: InternVit = clip.model.visual
    content = json.dumps(clip.config["model_cfg"]["internvl"], indent=2)
    (folder / "config.json").write_text(content + "\n")
    state = {f"model.{key}": value for key, value in visual.state_dict().items()}
    save_tensors(state, folder / "model.safetensors", {"format": "pt"})
    again = Textless(InternVit(parse_json(content, "config.json")))
    load_strictly(again, internvl_state(folder, str(folder)), str(folder))
    side = min(visual.image_size)
    pixel_values = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(again.eval().visual(pixel_values), visual(pixel_values.to(clip.device)).cpu()):
            raise UserError(f"{folder}: what was written gives other tokens; the disk may be damaged")


def _picked(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                short = key.removeprefix("model.")
                if short.startswith(PARTS):
                    yield f"visual.{short}", weights.get_tensor(key).float()


def _check_sizes(internvl: Mapping[str, Any], file: Path) -> None:
    with safe_open(file, framework="pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]
    largest = max((side for shape in shapes for side in shape), default=0)
    vision, text = internvl.get("vision_config") or {}, internvl.get("text_config") or {}
    sizes = {"hidden_size": vision.get("hidden_size"), "intermediate_size": vision.get("intermediate_size")}
    sizes |= {"text_config.hidden_size": text.get("hidden_size"), "num_hidden_layers": vision.get("num_hidden_layers")}
    for key, size in sizes.items():
        most = len(shapes) if key == "num_hidden_layers" else largest
        if type(size) is int and size > most:
            raise UserError(f"{file}: the configuration says {key} {str(size)[:20]}, and the weights have {most}")
    side = vision.get("image_size") or [0]
    if math.prod(side if isinstance(side, list) else [side]) > 10**8:
        raise UserError(f"{file}: the configuration says image_size {cause(repr(side))}")
