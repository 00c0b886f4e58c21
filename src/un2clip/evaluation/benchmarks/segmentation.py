"""Open-vocabulary segmentation: every pixel gets the class whose name its patch is most like; mIoU.

How the number misleads: features, settings and class names each move it by several points, so a number means
something beside another one of the same protocol only; and a class seen in few images weighs as much as a common one.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from un2clip.config import at_least
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.dense.features import get_dense_method, text_features
from un2clip.evaluation.dense.grid import save_grid
from un2clip.evaluation.dense.layouts import IGNORED, DataSet, Photograph, read_data_set
from un2clip.evaluation.dense.masks import Classes, Pixels, class_colours, read_mask, read_photograph, size_of
from un2clip.evaluation.dense.names import Names, names_sha256
from un2clip.evaluation.dense.pamr import refine
from un2clip.evaluation.dense.protocols import Settings, get_protocol, get_settings
from un2clip.evaluation.dense.resizing import resize
from un2clip.evaluation.dense.windows import similarity_maps, windows
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.models.clip import Clip, finite

MODEL: Model = "clip"
#: What the protocol line says of dense/resizing.py: scores from before it were resized in floats.
RESIZE = "resized as OpenCV does 8 bits"
Prediction = tuple[Photograph, Classes, Classes]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `evaluate.segmentation` of params.yaml.

    Attributes:
        method: dense features, a row of DENSE_METHODS.
        protocol: settings, an entry of dense/protocols.yaml.
        pictures: columns of the grid of pictures.
    """

    method: str
    protocol: str
    pictures: int

    def __post_init__(self) -> None:
        at_least(self, 1, "pictures")
        get_dense_method(self.method)
        get_protocol(self.protocol)


def run(clip: Clip, folder: Path, *, batch_size: int, options: Options, spread: Spread = alone) -> BenchmarkResult:
    """Intersection and union of every class in every image, in pixels; in fp32.

    Args:
        folder: a data set in its own layout (dense/layouts.py).
        batch_size: windows at once.
        options: features and protocol.

    Raises:
        UserError: data, method or protocol are not as they must be; the message names the file.
    """
    data = read_data_set(folder)
    text_features(clip, data.names)  # now, so that processes which share the batches find them on disk
    batches = list(_batches(data, batch_size, options))
    items = tuple(
        Item(id=f"{id}@{name}", type=name, value=float(intersection), of=float(union))
        for found in spread("segmentation", batches, partial(_overlaps, clip, batch_size, options))
        for id, name, intersection, union in found
    )
    if (said := _whose_names(data, folder, options.protocol)) is not None:
        print(said, flush=True)
    return BenchmarkResult(unit="mIoU", protocol=_protocol(data, options), items=items)


def draw(clips: Mapping[str, Clip], folder: Path, png: Path, *, batch_size: int, options: Options) -> None:
    """The first images of the data set, their masks, and what each encoder sees where it counts, in one PNG.

    Args:
        clips: encoders by the name that stands beside their row.
    """
    data = read_data_set(folder)
    few = data.first(options.pictures)
    rows = {
        name: [
            np.where(truth == IGNORED, truth, predicted)
            for _, truth, predicted in _predictions(clip, few, batch_size, options)
        ]
        for name, clip in clips.items()
    }
    images = [read_photograph(photograph) for photograph in few.photographs]
    truth = [read_mask(few, each, *image.shape[:2]) for each, image in zip(few.photographs, images, strict=True)]
    legend = {each[0]: colour for each, colour in zip(data.names, class_colours(data), strict=True)}
    save_grid(images, {"labels": truth} | rows, legend, png)


def overlaps(truth: Classes, predicted: Classes, names: Names) -> Iterator[tuple[str, int, int]]:
    """Class, intersection and union in pixels, for the classes that are in either; IGNORED pixels of truth left out."""
    counts = truth != IGNORED
    n = len(names)
    confusion = np.bincount(truth[counts] * n + predicted[counts], minlength=n * n).reshape(n, n)
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    for i in np.flatnonzero(union):
        yield names[i][0], int(intersection[i]), int(union[i])


def classify(similarity: Tensor, size: tuple[int, int], names: Names, settings: Settings, background: bool) -> Classes:
    """Cosines (Q, H, W) with all names -> the class of every pixel of a picture of this size, (height, width) int64.

    Bilinear to the size, times logit_scale, softmax over the names; a class has its best name's probability. With a
    background (class 0), what is unlikely or small becomes background, as the protocol says.
    """
    logits = interpolate(similarity[None], size=size, mode="bilinear")[0]
    if not (background and (settings.threshold or settings.area_threshold)):  # a softmax changes no order
        class_of = torch.tensor([i for i, each in enumerate(names) for _ in each], device=logits.device)
        return class_of[logits.argmax(0)].cpu().numpy()
    probability = logits.mul_(settings.logit_scale).softmax(0)
    probability = torch.stack([part.amax(0) for part in probability.split([len(each) for each in names])])
    likely, predicted = probability.max(0)
    if settings.area_threshold:
        area = predicted.flatten().bincount(minlength=len(names))
        area[0] = 0
        small = area <= settings.area_threshold * area.sum()
        small[0] = False
        likely, predicted = probability.masked_fill(small[:, None, None], 0.0).max(0)
    predicted[likely < settings.threshold] = 0
    return predicted.cpu().numpy()


def prepare(pixels: Pixels, settings: Settings, long_side_px: int, clip: Clip) -> Tensor:
    """Pixels (H, W, 3) uint8 -> pixel_values (3, h, w) at the protocol's size, normalised as the model wants it.

    Resized as mmcv does it, which the reference codes use (dense/resizing.py).
    """
    height, width = pixels.shape[:2]
    size = _prepared_size(height, width, settings, long_side_px)
    image = torch.from_numpy(resize(pixels, *size).copy()).permute(2, 0, 1).float() / 255
    cfg = clip.model.visual.preprocess_cfg
    return (image - torch.tensor(cfg["mean"])[:, None, None]) / torch.tensor(cfg["std"])[:, None, None]


def _prepared_size(height: int, width: int, settings: Settings, long_side_px: int) -> tuple[int, int]:
    scale = min(long_side_px / max(height, width), settings.short_side_px / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _batches(data: DataSet, batch_size: int, options: Options) -> Iterator[DataSet]:
    """Some photographs each, whose windows go through the tower together."""
    settings, protocol = get_settings(options.protocol, data.name), get_protocol(options.protocol)
    held: list[Photograph] = []
    filled = 0
    for photograph in data.photographs:
        size = _prepared_size(*size_of(photograph), settings, protocol.long_side_px)
        places = len(windows(*size, settings.crop_px, settings.stride_px))
        if held and filled + places > batch_size:
            yield replace(data, photographs=tuple(held))
            held, filled = [], 0
        held.append(photograph)
        filled += places
    yield replace(data, photographs=tuple(held))


def _overlaps(clip: Clip, batch_size: int, options: Options, batch: DataSet) -> list[tuple[str, str, int, int]]:
    """Photograph, class, intersection and union, of a batch."""
    return [
        (photograph.id, *found)
        for photograph, truth, predicted in _predictions(clip, batch, batch_size, options)
        for found in overlaps(truth, predicted, batch.names)
    ]


def _predictions(clip: Clip, data: DataSet, batch_size: int, options: Options) -> Iterator[Prediction]:
    """Each photograph with its labels and what the encoder makes of it, (H, W) both, in order."""
    settings, protocol = get_settings(options.protocol, data.name), get_protocol(options.protocol)
    waiting: deque[tuple[Photograph, Classes, Tensor]] = deque()

    def pictures() -> Iterator[Tensor]:
        for photograph in data.photographs:
            pixels = read_photograph(photograph)
            picture = prepare(pixels, settings, protocol.long_side_px, clip)
            waiting.append((photograph, read_mask(data, photograph, *pixels.shape[:2]), picture))
            yield picture

    maps = similarity_maps(
        clip,
        pictures(),
        text_features(clip, data.names),
        method=options.method,
        crop=settings.crop_px,
        stride=settings.stride_px,
        edge=protocol.edge,
        batch_size=batch_size,
    )
    for similarity in maps:
        photograph, truth, picture = waiting.popleft()
        finite(similarity[None], "photograph", [photograph.id])
        if protocol.pamr_steps:
            looks, large = (
                interpolate(each[None].to(similarity), size=truth.shape, mode="bilinear")[0]
                for each in (picture, similarity)
            )
            similarity = refine(large, looks, protocol.pamr_steps)
        yield photograph, truth, classify(similarity, truth.shape, data.names, settings, data.background)


def _whose_names(data: DataSet, folder: Path, protocol: str) -> str | None:
    """What is to be said where a paper's settings meet names that are not its authors'; None where nothing is."""
    if not get_protocol(protocol).own_names or data.name == "own" or (folder / "classes.txt").is_file():
        return None
    return (
        f"{folder} is measured with the official names of {data.name}. Those of the authors of {protocol} move mIoU by "
        f"several points: for their published numbers put their list into {folder / 'classes.txt'}"
    )


def _protocol(data: DataSet, options: Options) -> str:
    settings, protocol = get_settings(options.protocol, data.name), get_protocol(options.protocol)
    names = f"{len(data.names)} classes, names {names_sha256(data.names)[:12]}"
    how = f"{options.protocol} settings of {data.name} ({settings}; {protocol})"
    return f"{options.method} features, {how}, {RESIZE}, {names}"
