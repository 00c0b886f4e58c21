"""Distances of pictures by networks that know photographs: UniLIP's perceptual terms (arXiv 2507.23278, its code).

- lpips: LPIPS (arXiv 1801.03924) of torchvision's VGG16; its linear heads come with torchmetrics;
- logits: mean squared difference of ImageNet logits of torchvision's ConvNeXt-S, at 224 px.

Both want weights, which are local files with hashes and never fetched. Without them the pixel loss is the squared error
alone, and the training says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor, nn
from torch.nn.functional import interpolate

from un2clip.config import at_least
from un2clip.errors import UserError
from un2clip.files.outputs import save_tensors
from un2clip.files.weights import read_weights
from un2clip.models.adapting import load_strictly
from un2clip.sources.hub import read_tensors, verify

#: Network -> the term that it makes.
TERMS = {"vgg16": "lpips", "convnext_small": "logits"}
FOLDER = "perceptual"  # of the backbones
CONVOLUTIONS = "features."  # of torchvision's VGG16, before its classifier
SIDE = 224  # px, of the pictures that ConvNeXt sees


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """The section `finetune.perceptual`: weight of each network's term beside the pixels' squared error.

    Attributes:
        vgg16: of LPIPS.
        convnext_small: of the logits' difference.
    """

    vgg16: float
    convnext_small: float

    def __post_init__(self) -> None:
        at_least(self, 0, "vgg16", "convnext_small")


@dataclass(frozen=True, kw_only=True)
class PerceptualSource:
    """The section `backbones.perceptual`: file with the weights of each network -> its SHA-256; {} for none.

    Attributes:
        vgg16: torchvision's VGG16, of which the convolutions alone are read.
        convnext_small: torchvision's ConvNeXt-S.
    """

    vgg16: dict[str, str]
    convnext_small: dict[str, str]

    def __post_init__(self) -> None:
        for name, files in vars(self).items():
            if len(files) > 1:
                raise ValueError(f"{name} must name one file and its hash, got {', '.join(files)}")


class Perceptual(nn.Module):
    """Weighted distances between pictures; frozen, in float32 whatever surrounds it.

    Args:
        weights: network of TERMS -> weight of its term.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.networks = nn.ModuleDict({name: _new(name) for name in self.weights}).requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, drawn: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] -> lpips and logits, (B,) float32 each, times their weights."""
        terms: dict[str, Tensor] = {}
        with torch.autocast(drawn.device.type, enabled=False):
            drawn, target = drawn.float(), target.float()
            if "vgg16" in self.weights:
                terms["lpips"] = self.weights["vgg16"] * self.networks["vgg16"](drawn, target).flatten()
            if "convnext_small" in self.weights:
                mine, theirs = (self.networks["convnext_small"](self._seen(each)) for each in (drawn, target))
                terms["logits"] = self.weights["convnext_small"] * (mine - theirs).square().mean(dim=1)
        return terms

    def _seen(self, images: Tensor) -> Tensor:
        small = interpolate((images + 1) / 2, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        mean, std = self.mean, self.std
        assert isinstance(mean, Tensor) and isinstance(std, Tensor)
        return (small - mean) / std


def fetch_perceptual(params: PerceptualSource, folder: Path) -> None:
    """Write the networks that `params` names, verified, as folder/NETWORK.safetensors.

    Raises:
        UserError: a file is absent, not what its hash says, or of another network.
    """
    for network, files in vars(params).items():
        for name, sha256 in files.items():
            file = Path(name)
            verify(file.parent, {file.name: sha256}, f"backbones.perceptual.{network}")
            state = read_tensors(file)
            if network == "vgg16":
                state = {key: value for key, value in state.items() if key.startswith(CONVOLUTIONS)}
            _load(network, _new(network), state, name)  # what does not fit is said here
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(state, folder / f"{network}.safetensors")


def open_perceptual(backbones: Path, config: PerceptualConfig) -> tuple[Perceptual | None, list[str]]:
    """The networks that are there and have a weight, and the names of those that have a weight and are not there."""
    wanted = {name: weight for name, weight in vars(config).items() if weight}
    there = {name: weight for name, weight in wanted.items() if _file(backbones, name).is_file()}
    made = Perceptual(there) if there else None
    for name in there:
        assert made is not None
        _load(name, made.networks[name], read_weights(_file(backbones, name)), str(_file(backbones, name)))
    return made, [name for name in wanted if name not in there]


def in_words(absent: Iterable[str]) -> str:
    """What a training without these networks is without."""
    names = list(absent)
    return (
        f"the loss is without {' and '.join(TERMS[name] for name in names)}: backbones.perceptual names no weights of "
        f"{' and '.join(names)}"
    )


def _file(backbones: Path, network: str) -> Path:
    return backbones / FOLDER / f"{network}.safetensors"


def _new(network: str) -> nn.Module:
    """Untrained but for LPIPS's heads; neither dropout nor dropped paths, since it is never in training mode."""
    made: Any
    if network == "vgg16":
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public function would fetch VGG16

        heads = torch.get_default_device().type != "meta"  # which only asks for shapes
        made = _NoTrainLpips(net="vgg", pnet_rand=True, pretrained=heads)
    else:
        from torchvision.models import convnext_small

        made = convnext_small(weights=None)
    result: nn.Module = made.eval()
    return result


def _load(network: str, made: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """torchvision's tensors into a network; in LPIPS features.0.weight is net.slice1.0.weight, and it keeps its heads.

    Raises:
        UserError: they do not fit one by one.
    """
    if network == "vgg16":
        if not state:
            raise UserError(f"{name} holds no VGG16 of torchvision's: no name in it begins with {CONVOLUTIONS}")
        own = made.state_dict()
        places = {CONVOLUTIONS + key.split(".", 2)[2]: key for key in own if key.startswith("net.")}
        heads = {key: value for key, value in own.items() if not key.startswith("net.")}
        state = heads | {places.get(key, key): value for key, value in state.items()}
    load_strictly(made, state, name)
