"""Reconstruction: how near the picture that is drawn of an encoder's patches comes to the picture.

How the number misleads: PSNR rewards a blurred mean of what might be there. What is drawn depends on the decoder and
its training as much as on the encoder, and on how many numbers it is told, which the protocol line says: encoders of
other grids are no rivals. An encoder that gives pictures back may know no more what they show; read it beside
zero-shot.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from un2clip.config import at_least
from un2clip.datasets.loader import generator_view
from un2clip.errors import UserError
from un2clip.evaluation.autoencoding import Autoencoder
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.readers import Picture, read_pictures
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.evidence.scores import Role
from un2clip.evidence.units import LOUDEST
from un2clip.sources.hub import verify

MODEL: Model = "autoencoder"
Named = tuple[str, Picture]
SMALLEST = 11  # px: SSIM's window
PROTOCOL = "pixels between 0 and 1, clamped, not rounded; SSIM: Gaussian window of 11 px and sigma 1.5, data range 1"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `evaluate.reconstruction` of params.yaml.

    Attributes:
        image_px: side of the pictures that are compared; 0: the encoder's own.
        pictures: columns of the grid.
        inception: file with torch-fidelity's Inception weights -> its SHA-256, for rFID; {} for none.
    """

    image_px: int
    pictures: int
    inception: dict[str, str]

    def __post_init__(self) -> None:
        at_least(self, 0, "image_px")
        at_least(self, 1, "pictures")
        if 0 < self.image_px < SMALLEST:
            raise ValueError(f"image_px must be 0 or at least {SMALLEST}, SSIM's window; got {self.image_px}")
        if len(self.inception) > 1:
            raise ValueError(f"inception must name one file, got {', '.join(self.inception)}")


def run(
    model: Autoencoder,
    folder: Path,
    *,
    batch_size: int,
    options: Options,
    reference: Autoencoder | None = None,
    spread: Spread = alone,
) -> BenchmarkResult:
    """PSNR of every picture, in dB; `also` its SSIM, and of the whole set a Frechet distance.

    The distance is rFID where Inception's weights are given; else it is of the untouched encoder's features, under
    another name.

    Args:
        folder: tars with an image a sample, or image files at any depth.

    Raises:
        UserError: a picture cannot be read, or there are fewer than two; see Autoencoder.reconstruct.
    """
    px = options.image_px or model.own_px
    if px < SMALLEST:
        raise UserError(f"pictures of {px} px are smaller than SSIM's window of {SMALLEST} px; set image_px")
    distance = _Distance(reference, options, model.decoder.device)
    psnr: list[Item] = []
    ssim: list[Item] = []
    measured = partial(_measured, model, distance)
    for names, *features, decibel, similar in spread(
        "reconstruction", _batches(folder, batch_size), partial(_open, px), measured
    ):
        distance.update(*features)
        for found, values in ((psnr, decibel), (ssim, similar)):
            found += [Item(id=name, type="image", value=value) for name, value in zip(names, values, strict=True)]
    if len(psnr) < 2:
        raise UserError(f"{folder} holds {len(psnr)} images, and a distance of sets needs two at least")
    side = model.side(px)
    padded = f", padded to {side} by reflection" if side > px else ""
    said = (
        f"fp32; {px} px, shortest side and centre crop{padded}; {model.numbers(px)} numbers an image; {model.through}; "
    )
    also = {"ssim": BenchmarkResult(unit="SSIM", protocol=said + PROTOCOL, items=tuple(ssim))}
    return BenchmarkResult(
        unit="dB", protocol=said + PROTOCOL, items=tuple(psnr), also=also | distance.result(said, len(psnr))
    )


def draw(models: Mapping[Role, Autoencoder], folder: Path, png: Path, *, batch_size: int, options: Options) -> None:
    """The first pictures, and below them what is drawn of each encoder's patches."""
    from matplotlib.figure import Figure  # here, since every benchmark's start would wait for it

    model = next(iter(models.values()))
    names, images = _open(options.image_px or model.own_px, next(_batches(folder, options.pictures))).values()
    rows = {"original": images} | {
        role: each.reconstruct(images.to(each.decoder.device), names).cpu() for role, each in models.items()
    }
    figure = Figure(figsize=(1.2 + 1.2 * len(names), 1.2 * len(rows)), layout="constrained")
    for axes_row, (name, row) in zip(figure.subplots(len(rows), len(names), squeeze=False), rows.items(), strict=True):
        for axes, image in zip(axes_row, row, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110, metadata={"Software": None})


def _measured(
    model: Autoencoder, distance: "_Distance", batch: dict[str, Any]
) -> tuple[list[str], Tensor, Tensor, list[float], list[float]]:
    """Names of a batch, features of its pictures and of what is drawn, PSNR and SSIM of each."""
    names, images = batch["names"], batch["images"].to(model.decoder.device, non_blocking=True)
    drawn = model.reconstruct(images, names)
    before, after = (distance.features(each).cpu() for each in (images, drawn))
    return names, before, after, decibels(drawn, images).tolist(), likeness(drawn, images).tolist()


def decibels(drawn: Tensor, images: Tensor) -> Tensor:
    """PSNR of each of (B, 3, S, S): -10 log10 of the mean squared error, at most LOUDEST; (B,) float64."""
    error = (drawn.double() - images.double()).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=10 ** (-LOUDEST / 10)).log10()


def likeness(drawn: Tensor, images: Tensor) -> Tensor:
    """SSIM of each of (B, 3, S, S), data range 1, window of 11 px and sigma 1.5 (Wang et al. 2004); (B,) float64."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        drawn.double(), images.double(), data_range=1.0, sigma=1.5, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(images))


class _Distance:
    """Frechet distance of the pictures' features from the reconstructions', by torchmetrics."""

    def __init__(self, reference: Autoencoder | None, options: Options, device: torch.device) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.inception, self.metric, self.device = bool(options.inception), None, device
        self.network: Any = None
        if self.inception:
            weights = _weights(options.inception)
            made = FrechetInceptionDistance(2048, feature_extractor_weights_path=weights, antialias=False)
            self.network, size = made.inception.to(device), 2048
            self.of = f"torch-fidelity's Inception ({next(iter(options.inception.values()))[:12]})"
        elif reference is not None:
            px = reference.own_px
            self.network = reference.features
            size = int(self.network(torch.zeros(1, 3, px, px, device=device)).shape[1])
            self.of = f"the untouched encoder's {size} features"
        if self.network is not None:
            self.metric = FrechetInceptionDistance(_Given(size)).to(device)

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] -> (B, D); (0,) where there is no distance."""
        if self.network is None:
            return torch.empty(0)
        found: Tensor = self.network((images * 255).round().byte() if self.inception else images)
        return found

    def update(self, of_images: Tensor, of_drawn: Tensor) -> None:
        if self.metric is not None:
            self.metric.update(of_images.to(self.device), real=True)
            self.metric.update(of_drawn.to(self.device), real=False)

    def result(self, said: str, n: int) -> dict[str, BenchmarkResult]:
        """The score by its name; {} where there is none."""
        if self.metric is None:
            return {}
        name, unit = ("rfid", "rFID") if self.inception else ("frechet", "Frechet")
        number = max(0.0, float(self.metric.compute()))
        protocol = f"{said}{n} images; features of {self.of}"
        return {name: BenchmarkResult(unit=unit, protocol=protocol, items=(), number=number)}


class _Given(torch.nn.Module):
    """What torchmetrics takes in Inception's place: it is given features, not pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _weights(inception: dict[str, str]) -> str:
    """The file of Inception's weights, if it is what its hash says and torch-fidelity is there to read it."""
    from importlib.util import find_spec

    ((name, wanted),) = inception.items()
    verify(Path(name).parent, {Path(name).name: wanted}, "evaluate.reconstruction.inception")
    if find_spec("torch_fidelity") is None:
        raise UserError("rFID is computed by torch-fidelity, which is not installed: pip install 'un2clip[fidelity]'")
    return name


def _batches(folder: Path, size: int) -> Iterator[list[Named]]:
    pictures = read_pictures(folder)
    while batch := list(islice(pictures, size)):
        yield batch


def _open(px: int, batch: list[Named]) -> dict[str, Any]:
    """Names, and pictures (B, 3, px, px) in [0, 1]."""
    view = generator_view(px)
    images = torch.stack([_unit(view(picture.read())) for _, picture in batch])
    return {"names": [name for name, _ in batch], "images": images}


def _unit(image: Tensor) -> Tensor:
    return (image + 1) / 2
