"""Controlled edits of photographs with masks: pairs in MMVP-VLM's layout whose two images differ in one thing alone.

A photograph gives one pair, of the kind that fits it and was made least often before: so pairs are independent samples,
and kinds about equally many. Nothing is drawn at random; the same photographs give the same pairs. edits.yaml has the
numbers.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from tqdm import tqdm

from un2clip.config import build, read_yaml
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks.mmvp_vlm import COLUMNS, IMAGE_FOLDERS, QUESTIONS
from un2clip.evaluation.dense.layouts import DataSet, Photograph, read_data_set
from un2clip.evaluation.dense.masks import Pixels, read_mask, read_photograph
from un2clip.evaluation.readers import data_sha256
from un2clip.files.outputs import is_empty, replaced

Region = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Edits:
    """The numbers of edits.yaml, which says what each means."""

    long_side_px: int
    quality: int
    area: tuple[float, float]
    one_side: float
    close_up: float
    margin: float
    blur: float
    bright: float
    saturation: float
    colourful: float
    colours: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Object:
    """An object in its photograph: pixels (H, W, 3) uint8, its region (H, W), its name, and a number to vary by."""

    pixels: Pixels
    region: Region
    name: str
    turn: int


#: Two images and the statement of each.
Pair = tuple[tuple[Image.Image, str], tuple[Image.Image, str]]


def _colour(seen: Object, numbers: Edits) -> Pair | None:
    """The object in one colour and in another, each pixel as bright as it was."""
    whole = Image.fromarray(seen.pixels)
    brightness = whole.convert("HSV").getchannel("V")
    if np.asarray(brightness)[seen.region].mean() < 255 * numbers.bright:
        return None
    names = list(numbers.colours)
    first, second = (names[(seen.turn + i) % len(names)] for i in (0, 1))

    def coloured(name: str) -> Image.Image:
        hue, saturation = (
            Image.new("L", whole.size, round(255 * share)) for share in (numbers.colours[name], numbers.saturation)
        )
        changed = Image.merge("HSV", (hue, saturation, brightness)).convert("RGB")
        return Image.composite(changed, whole, Image.fromarray(seen.region))

    return (coloured(first), f"a {first} {seen.name}"), (coloured(second), f"a {second} {seen.name}")


def _greyness(seen: Object, numbers: Edits) -> Pair | None:
    """Either the object or all else without colour, where both have some."""
    whole = Image.fromarray(seen.pixels)
    saturation = np.asarray(whole.convert("HSV").getchannel("S"))
    if min(saturation[seen.region].mean(), saturation[~seen.region].mean()) < 255 * numbers.colourful:
        return None
    grey, mask = whole.convert("L").convert("RGB"), Image.fromarray(seen.region)
    return (
        (Image.composite(whole, grey, mask), f"a colorful {seen.name} on a black and white background"),
        (Image.composite(grey, whole, mask), f"a black and white {seen.name} on a colorful background"),
    )


def _sharpness(seen: Object, numbers: Edits) -> Pair | None:
    """Either the object or all else out of focus."""
    whole = Image.fromarray(seen.pixels)
    blurred = whole.filter(ImageFilter.GaussianBlur(numbers.blur * max(whole.size)))
    mask = Image.fromarray(seen.region)
    return (
        (Image.composite(whole, blurred, mask), f"a sharp {seen.name} in front of a blurred background"),
        (Image.composite(blurred, whole, mask), f"a blurred {seen.name} in front of a sharp background"),
    )


def _orientation(seen: Object, numbers: Edits) -> Pair | None:
    """The photograph as it is and upside down."""
    whole = Image.fromarray(seen.pixels)
    turned = whole.transpose(Image.Transpose.ROTATE_180)
    return (whole, f"an upright {seen.name}"), (turned, f"an upside-down {seen.name}")


def _position(seen: Object, numbers: Edits) -> Pair | None:
    """The photograph as it is and mirrored, where the object stands in one half."""
    left = seen.region[:, : seen.region.shape[1] // 2].sum() / seen.region.sum()
    if max(left, 1.0 - left) < numbers.one_side:
        return None
    whole = Image.fromarray(seen.pixels)
    mirrored = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first, second = (whole, mirrored) if left > 0.5 else (mirrored, whole)
    return (first, f"the {seen.name} on the left side"), (second, f"the {seen.name} on the right side")


def _distance(seen: Object, numbers: Edits) -> Pair | None:
    """The object from near, cut out with a margin and enlarged to the photograph's longer side, and from far."""
    rows, columns = (np.flatnonzero(seen.region.any(axis)) for axis in (1, 0))
    margin = round(numbers.margin * max(np.ptp(rows), np.ptp(columns)) + 1)
    height, width = seen.region.shape
    box = (max(0, int(columns[0]) - margin), max(0, int(rows[0]) - margin),
           min(width, int(columns[-1]) + margin + 1), min(height, int(rows[-1]) + margin + 1))  # fmt: skip
    if (box[2] - box[0]) * (box[3] - box[1]) > numbers.close_up * height * width:
        return None
    whole = Image.fromarray(seen.pixels)
    near = _fitted(whole.crop(box), max(whole.size))
    return (near, f"a close-up of the {seen.name}"), (whole, f"a distant view of the {seen.name}")


#: Kind of edit, which is the pair's type -> how it is made; None where it does not fit the object.
EDITS: dict[str, Callable[[Object, Edits], Pair | None]] = {
    "colour": _colour,
    "greyness": _greyness,
    "sharpness": _sharpness,
    "orientation": _orientation,
    "position": _position,
    "distance": _distance,
}


def make_edits(data: Path, to: Path) -> str:
    """Write the pairs of a folder of photographs and masks, and say how many of each kind there are.

    Args:
        data: a data set in one of the segmentation benchmark's layouts (dense/layouts.py).
        to: folder that gets Questions.csv, the images, and edits.json, which says of which data by which numbers.

    Raises:
        UserError: `to` is not empty, the data are not as they must be, or no photograph has an object that fits.
    """
    if not is_empty(to):
        raise UserError(f"{to} holds files already; delete it or name another folder")
    numbers = build(Edits, read_yaml(files("un2clip.evaluation") / "edits.yaml"), "edits")
    source, made = read_data_set(data), Counter[str]()
    with replaced(to) as partial, (partial / QUESTIONS).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for turn, photograph in enumerate(tqdm(source.photographs, unit="photograph", desc="edits", mininterval=1)):
            objects = _objects(source, photograph, numbers, turn)
            rarest = sorted(EDITS, key=lambda name: (made[name], name))
            possible = ((kind, EDITS[kind](seen, numbers)) for kind in rarest for seen in objects)
            kind, pair = next(((kind, pair) for kind, pair in possible if pair is not None), ("", None))
            if pair is None:
                continue
            folder = partial / IMAGE_FOLDERS[0] / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number, (image, statement) in enumerate(pair, 2 * made.total() + 1):
                image.save(folder / f"{number}.jpg", quality=numbers.quality)
                rows.writerow([number, kind, statement])
            made[kind] += 1
        if not made:
            low, high = (f"{100 * share:g}" for share in numbers.area)
            raise UserError(
                f"{data}: no object covers {low} to {high} % of its photograph, so there is nothing to edit"
            )
        content = {"data_sha256": data_sha256(data), "numbers": asdict(numbers), "pairs": made}
        (partial / "edits.json").write_text(json.dumps(content, indent=1) + "\n")
    kinds = ", ".join(f"{made[name]} {name}" for name in EDITS if made[name])
    return f"{made.total()} pairs of {len(source.photographs)} photographs in {to}: {kinds}"


def _objects(data: DataSet, photograph: Photograph, numbers: Edits, turn: int) -> list[Object]:
    """The objects of a size that fits, largest first, in the photograph as large as it is written."""
    pixels = read_photograph(photograph)
    classes = read_mask(data, photograph, *pixels.shape[:2])
    whole = Image.fromarray(pixels)
    if max(whole.size) > numbers.long_side_px:
        small = _fitted(whole, numbers.long_side_px)
        rows = (np.arange(small.height) * whole.height) // small.height
        columns = (np.arange(small.width) * whole.width) // small.width
        pixels, classes = np.asarray(small), classes[rows][:, columns]
    areas = np.bincount(classes[classes >= 0].ravel(), minlength=len(data.names)) / classes.size
    if data.background:
        areas[0] = 0.0
    fits = [each for each in np.argsort(-areas, kind="stable") if numbers.area[0] <= areas[each] <= numbers.area[1]]
    names = [_printable(data.names[each][0]) for each in fits]
    return [
        Object(pixels=pixels, region=classes == each, name=name, turn=turn)
        for each, name in zip(fits, names, strict=True)
    ]


def _printable(name: str) -> str:
    """A name on one line, without control characters, which no reader of Questions.csv takes."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split()) or "thing"


def _fitted(image: Image.Image, long_side: int) -> Image.Image:
    scale = long_side / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return image.resize(size, Image.Resampling.BICUBIC)
