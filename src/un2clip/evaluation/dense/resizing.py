"""Resize a picture as mmcv does, which the reference codes of segmentation use: OpenCV's 8-bit bilinear, in integers.

OpenCV's builds differ among themselves by a grey level here and there; this is the plain one, on any machine. A float
resize rounded to grey levels is another one: a level off in every eighth value.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Integers = NDArray[np.int32]

#: Weights are whole numbers of 1 / 2048 (OpenCV's INTER_RESIZE_COEF_BITS); their products are cut by 4 and 16 bits.
ONE = 1 << 11


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels (H, W, C) uint8 -> (height, width, C) uint8, bilinear without anti-aliasing."""
    from_height, from_width = pixels.shape[:2]
    if (from_height, from_width) == (height, width):
        return pixels
    if (from_height, from_width) == (2 * height, 2 * width):
        return _halved(pixels)
    wide = pixels.astype(np.int32)
    left, right, share = _neighbours(from_width, width)
    rows = wide[:, left] * _weight(1 - share)[:, None] + wide[:, right] * _weight(share)[:, None]
    top, bottom, share = _neighbours(from_height, height)
    # Each product is cut alone, so at the upper and lower edge two cuts of one row may lose a level: 127, not 128.
    above = (_weight(1 - share)[:, None, None] * (rows[top] >> 4)) >> 16
    below = (_weight(share)[:, None, None] * (rows[bottom] >> 4)) >> 16
    found: Pixels = ((above + below + 2) >> 2).astype(np.uint8)
    return found


def _neighbours(side: int, to: int) -> tuple[Integers, Integers, NDArray[np.float32]]:
    """For each of `to` places: its two neighbours among `side`, held at the edges, and the share of the second."""
    place = ((np.arange(to) + 0.5) * (side / to) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int32)
    share = place - first.astype(np.float32)
    return first.clip(0, side - 1), (first + 1).clip(0, side - 1), share


def _weight(share: NDArray[np.float32]) -> Integers:
    return np.rint(share * ONE).astype(np.int32)


def _halved(pixels: Pixels) -> Pixels:
    """To exactly half of both sides OpenCV takes the mean of 2 x 2, half a level upwards."""
    wide = pixels.astype(np.int32)
    quads = wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2]
    found: Pixels = ((quads + 2) >> 2).astype(np.uint8)
    return found
