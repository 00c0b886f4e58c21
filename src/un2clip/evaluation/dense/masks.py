"""Photographs and their masks as arrays, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from un2clip.datasets.images import decode, open_image
from un2clip.errors import UserError, cause
from un2clip.evaluation.dense.layouts import IGNORED, LABELS, DataSet, Photograph

Pixels = NDArray[np.uint8]
Classes = NDArray[np.int64]

_UNKNOWN = -2


def read_photograph(photograph: Photograph) -> Pixels:
    """Pixels (H, W, 3) uint8; a grey photograph has three equal channels."""
    try:
        return np.asarray(decode(photograph.image))
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise UserError(f"{photograph.image} is not a readable image: {error}") from None


def size_of(photograph: Photograph) -> tuple[int, int]:
    """Height and width by the file's header, lying or upright; what cannot be read is told by who reads the pixels."""
    try:
        with open_image(photograph.image) as image:
            return image.height, image.width
    except Exception:  # as above
        return 1, 1


def read_mask(data: DataSet, photograph: Photograph, height: int, width: int) -> Classes:
    """Classes (H, W) int64, IGNORED where a pixel does not count.

    Raises:
        UserError: the mask has colours instead of labels, another size than its photograph, or an unknown label.
    """
    labels = np.asarray(_open(photograph.mask))
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{photograph.mask} is no mask: it needs one channel of labels, or a palette")
    if labels.shape != (height, width):
        size = f"{labels.shape[1]} x {labels.shape[0]}"
        raise UserError(f"{photograph.mask} is {size}, but its photograph is {width} x {height}")
    return classes_of(labels, data.classes, str(photograph.mask))


def classes_of(labels: NDArray[Any], classes: Mapping[int, int], name: str) -> Classes:
    """The class of every label; `name` is the mask's, for messages.

    Args:
        labels: (H, W) integers of any kind.
        classes: label, from 0 to LABELS - 1 -> class.

    Raises:
        UserError: a label is below 0 or belongs to no class.
    """
    table = np.full(LABELS, _UNKNOWN)
    table[list(classes)] = list(classes.values())
    unknown = (labels < 0) | (labels >= LABELS)
    found: Classes = table[np.where(unknown, 0, labels)]
    unknown |= found == _UNKNOWN
    if unknown.any():
        known = [label for label, each in classes.items() if each != IGNORED]
        raise UserError(
            f"{name} has the label {labels[unknown].min()}, which no class has; "
            f"the {len(known)} classes have labels from {min(known)} to {max(known)}"
        )
    return found


def class_colours(data: DataSet) -> Pixels:
    """A colour for each class (n, 3): those of the first mask's own palette, where it has one, or PASCAL VOC's."""
    fallback = palette(len(data.names) + 1)[1:]
    own = _open(data.photographs[0].mask).getpalette()
    if own is None or max(data.classes) >= len(own) // 3:
        return fallback
    label_of = {each: label for label, each in data.classes.items()}
    return np.array(own, np.uint8).reshape(-1, 3)[[label_of[each] for each in range(len(data.names))]]


def palette(n: int) -> Pixels:
    """PASCAL VOC's first n colours (n, 3): black, then such as can be told apart."""
    colours = np.zeros((n, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((np.arange(n) >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _open(path: Path) -> Image.Image:
    try:
        with open_image(path) as image:
            image.load()
            return image
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise UserError(f"{path} is not a readable image: {cause(error)}") from None
