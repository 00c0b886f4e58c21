"""Open-vocabulary segmentation: every pixel gets the class whose name its patch is most like; mIoU.

How the number misleads: features, settings and class names each move it by several points, so a number means
something beside another one of the same protocol only; and a class seen in few images weighs as much as a common one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from un2clip.evaluation.dense.windows import Map, similarity_maps, windows
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.models.clip import Clip, finite

MODEL: Model = "clip"
#: What the protocol line says of dense/resizing.py: scores from before it were resized in floats.
RESIZE = "resized as OpenCV does 8 bits"
#: Of a map, about so many values are made at once, of a multiple of so many names: torch interpolates fewer (three
#: channels, or what is left over) by other instructions, and last bits differ.
VALUES_AT_ONCE, NAMES = 2**21, 8


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
    read = partial(_read, options, clip.model.visual.preprocess_cfg)
    items = tuple(
        Item(id=f"{id}@{name}", type=name, value=float(intersection), of=float(union))
        for found in spread("segmentation", batches, read, partial(_overlaps, clip, data, batch_size, options))
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
            torch.where(truth == IGNORED, truth, predicted).cpu().numpy()
            for truth, predicted in _predictions(
                clip, data, batch_size, options, _read(options, clip.model.visual.preprocess_cfg, few)
            )
        ]
        for name, clip in clips.items()
    }
    images = [read_photograph(photograph) for photograph in few.photographs]
    truth = [read_mask(few, each, *image.shape[:2]) for each, image in zip(few.photographs, images, strict=True)]
    legend = {each[0]: colour for each, colour in zip(data.names, class_colours(data), strict=True)}
    save_grid(images, {"labels": truth} | rows, legend, png)


def confusion(truth: Tensor, predicted: Tensor, n: int) -> Tensor:
    """Classes (H, W) int64 of n -> pixels of class i called j, (n, n) int64; IGNORED ones of truth are left out."""
    cells = torch.where(truth == IGNORED, n * n, truth * n + predicted).flatten()
    # counts of all cells, as bincount's, for which a GPU would have to be waited for
    return cells.new_zeros(n * n + 1).scatter_add_(0, cells, torch.ones_like(cells))[:-1].unflatten(0, (n, n))


def overlaps(confusion: Classes, names: Names) -> Iterator[tuple[str, int, int]]:
    """Class, intersection and union in pixels, for the classes that are in either, from `confusion`."""
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    for i in np.flatnonzero(union):
        yield names[i][0], int(intersection[i]), int(union[i])


def classify(
    similarity: Tensor | Map, size: tuple[int, int], names: Names, settings: Settings, background: bool
) -> Tensor:
    """Cosines (Q, H, W) with all names -> the class of every pixel of a picture of this size, (height, width) int64.

    Bilinear to the size, times logit_scale, softmax over the names; a class has its best name's probability. With a
    background (class 0), what is unlikely or small becomes background, as the protocol says.
    """
    if not (background and (settings.threshold or settings.area_threshold)):  # a softmax changes no order
        best = _best(similarity, size)
        return torch.tensor([i for i, each in enumerate(names) for _ in each], device=best.device)[best]
    logits = interpolate(similarity[:][None], size=size, mode="bilinear")[0]
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
    return predicted


def _best(similarity: Tensor | Map, size: tuple[int, int]) -> Tensor:
    """Which name every pixel is most like, the first of those that are equally so, (height, width) int64.

    Some names at a time, so that there is no (Q, height, width): what is made stays in the processor's cache.
    """
    step = NAMES * max(1, VALUES_AT_ONCE // (NAMES * size[0] * size[1]))
    most, best = torch.empty(0), torch.empty(0)
    starts = [i * step for i in range(max(1, len(similarity) // step))]  # what is left over goes with the last
    for start, end in zip(starts, [*starts[1:], len(similarity)], strict=True):
        found, which = interpolate(similarity[start:end][None], size=size, mode="bilinear")[0].max(0)
        if start:
            above = found > most
            most, best = torch.where(above, found, most), torch.where(above, which + start, best)
        else:
            most, best = found, which
    return best


def prepare(pixels: Pixels, settings: Settings, long_side_px: int, cfg: Mapping[str, Any]) -> Tensor:
    """Pixels (H, W, 3) uint8 -> pixel_values (3, h, w) at the protocol's size, normalised as the model wants it.

    Resized as mmcv does it, which the reference codes use (dense/resizing.py).
    """
    height, width = pixels.shape[:2]
    size = _prepared_size(height, width, settings, long_side_px)
    image = torch.from_numpy(resize(pixels, *size).copy()).permute(2, 0, 1).float() / 255
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


def _read(options: Options, cfg: Mapping[str, Any], data: DataSet) -> dict[str, Any]:
    """Names, prepared pictures (3, h, w) and labels (H, W) int32, which are half of what they are as int64."""
    settings, protocol = get_settings(options.protocol, data.name), get_protocol(options.protocol)
    batch: dict[str, list[Any]] = {"ids": [], "pictures": [], "truth": []}
    for photograph in data.photographs:
        pixels = read_photograph(photograph)
        batch["ids"].append(photograph.id)
        batch["pictures"].append(prepare(pixels, settings, protocol.long_side_px, cfg))
        batch["truth"].append(torch.from_numpy(read_mask(data, photograph, *pixels.shape[:2])).int())
    return batch


def _overlaps(
    clip: Clip, data: DataSet, batch_size: int, options: Options, batch: dict[str, Any]
) -> list[tuple[str, str, int, int]]:
    """Photograph, class, intersection and union, of a batch."""
    counts = [confusion(*each, len(data.names)) for each in _predictions(clip, data, batch_size, options, batch)]
    return [
        (id, *found)
        for id, each in zip(batch["ids"], torch.stack(counts).cpu().numpy(), strict=True)
        for found in overlaps(each, data.names)
    ]


def _predictions(
    clip: Clip, data: DataSet, batch_size: int, options: Options, batch: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each photograph of a batch its labels and what the encoder makes of it, (H, W) int64 both, in order."""
    settings, protocol = get_settings(options.protocol, data.name), get_protocol(options.protocol)
    maps = similarity_maps(
        clip,
        batch["pictures"],
        text_features(clip, data.names),
        method=options.method,
        crop=settings.crop_px,
        stride=settings.stride_px,
        edge=protocol.edge,
        batch_size=batch_size,
    )
    for similarity, id, picture, truth in zip(maps, batch["ids"], batch["pictures"], batch["truth"], strict=True):
        finite(similarity.patches[None], "photograph", [id])
        found: Tensor | Map = similarity
        if protocol.pamr_steps:
            looks, large = (
                interpolate(each[None].to(similarity.patches), size=truth.shape, mode="bilinear")[0]
                for each in (picture, similarity[:])
            )
            found = refine(large, looks, protocol.pamr_steps)
        predicted = classify(found, truth.shape, data.names, settings, data.background)
        yield truth.to(predicted.device, non_blocking=True).long(), predicted


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
