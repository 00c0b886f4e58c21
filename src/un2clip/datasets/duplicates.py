"""Find images that were seen before: the same pixels, or nearly the same picture.

The perceptual hash is the usual one (32 x 32 grey, DCT, the 8 x 8 lowest frequencies against their median)
in eight lines of numpy; ImageHash's `phash`, which agrees with it, would bring scipy and PyWavelets along.
"""

import functools
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from un2clip.datasets.tars import Rejected

Mode = Literal["keep", "exact", "near"]
_BITS = 64


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a picture is known again by: sha256 of its pixels and, with mode near, its perceptual hash."""

    pixels: bytes
    perceptual: int


def fingerprint(image: Image.Image, mode: Mode) -> Fingerprint | None:
    """The fingerprint of an RGB image, as much of it as `mode` needs."""
    if mode == "keep":
        return None
    pixels = hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).digest()
    return Fingerprint(pixels=pixels, perceptual=perceptual_hash(image) if mode == "near" else 0)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when the picture does.

    Source: https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = _cosines() @ grey @ _cosines().T
    low = low.round(6)  # a flat picture's zeros come out as rounding noise, whose sign would be chance
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    """The eight lowest rows of the unnormalised 32-point DCT-II, (8, 32)."""
    return 2 * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)


class Duplicates:
    """The pictures seen so far, by fingerprint."""

    def __init__(self, mode: Mode, near_distance: int) -> None:
        self._mode = mode
        self._pixels: dict[bytes, str] = {}
        self._near = NearIndex(near_distance)

    def claim(self, key: str, image: Fingerprint | None) -> None:
        """Remember the picture of sample `key`; None (mode keep) is never a duplicate.

        Raises:
            Rejected: an earlier sample has the same pixels or, with mode near, nearly the same picture.
        """
        if image is None:
            return
        if (earlier := self._pixels.get(image.pixels)) is not None:
            raise Rejected("duplicate image", f"same pixels as {earlier}")
        if self._mode == "near":
            if (earlier := self._near.find(image.perceptual)) is not None:
                raise Rejected("near duplicate image", f"looks like {earlier}")
            self._near.add(image.perceptual, key)
        self._pixels[image.pixels] = key


class NearIndex:
    """Perceptual hashes, each with its key; finds one within `distance` bits without trying them all.

    The 64 bits are cut into distance // 2 + 1 bands. Two hashes that differ in at most `distance` bits
    differ in at most one bit of some band, so it is enough to look up each band as it is and with each of
    its bits flipped.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        edges = np.linspace(0, _BITS, distance // 2 + 2).astype(int).tolist()
        self._bands = [(low, high - low) for low, high in zip(edges, edges[1:], strict=False)]
        self._tables: list[dict[int, list[int]]] = [defaultdict(list) for _ in self._bands]
        self._keys: dict[int, str] = {}

    def find(self, perceptual: int) -> str | None:
        """Key of a hash within the distance, or None."""
        for (shift, width), table in zip(self._bands, self._tables, strict=True):
            band = perceptual >> shift & (1 << width) - 1
            for probe in (band, *(band ^ 1 << bit for bit in range(width))):
                for other in table.get(probe, ()):
                    if (perceptual ^ other).bit_count() <= self._distance:
                        return self._keys[other]
        return None

    def add(self, perceptual: int, key: str) -> None:
        """Remember a hash that `find` did not find."""
        self._keys[perceptual] = key
        for (shift, width), table in zip(self._bands, self._tables, strict=True):
            table[perceptual >> shift & (1 << width) - 1].append(perceptual)
