"""Find images that were seen before: the same pixels, or nearly the same picture.

The perceptual hash is the usual one (32 x 32 grey, DCT, the 8 x 8 lowest frequencies against their median)
in eight lines of numpy; ImageHash's `phash`, which agrees with it, would bring scipy and PyWavelets along.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from un2clip.datasets.tables import Tables
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

    def __init__(self, mode: Mode, near_distance: int, tables: Tables) -> None:
        self._mode, self._tables = mode, tables
        self._near = NearIndex(near_distance, tables)
        tables.execute("CREATE TABLE pixels (sha256 BLOB PRIMARY KEY, key TEXT) WITHOUT ROWID")

    def claim(self, key: str, image: Fingerprint | None) -> None:
        """Remember the picture of sample `key`; None (mode keep) is never a duplicate.

        Raises:
            Rejected: an earlier sample has the same pixels or, with mode near, nearly the same picture.
        """
        if image is None:
            return
        earlier = self._tables.execute("SELECT key FROM pixels WHERE sha256 = ?", (image.pixels,)).fetchone()
        if earlier is not None:
            raise Rejected("duplicate image", f"same pixels as {earlier[0]}")
        if self._mode == "near":
            if (near := self._near.find(image.perceptual)) is not None:
                raise Rejected("near duplicate image", f"looks like {near}")
            self._near.add(image.perceptual, key)
        self._tables.execute("INSERT INTO pixels VALUES (?, ?)", (image.pixels, key))


class NearIndex:
    """Perceptual hashes, each with its key; finds one within `distance` bits without trying them all.

    The 64 bits are cut into distance // 2 + 1 bands. Two hashes that differ in at most `distance` bits
    differ in at most one bit of some band, so it is enough to look up each band as it is and with each of
    its bits flipped.
    """

    def __init__(self, distance: int, tables: Tables | None = None) -> None:
        self._distance, self._tables = distance, tables or Tables()
        edges = np.linspace(0, _BITS, distance // 2 + 2).astype(int).tolist()
        self._bands = [(low, high - low) for low, high in zip(edges, edges[1:], strict=False)]
        self._count = 0
        self._tables.execute("CREATE TABLE pictures (number INTEGER PRIMARY KEY, key TEXT)")
        for band in range(len(self._bands)):
            self._tables.execute(
                f"CREATE TABLE band_{band} (bits BLOB, number INTEGER, perceptual BLOB, PRIMARY KEY (bits, number)) "
                "WITHOUT ROWID"
            )

    def find(self, perceptual: int) -> str | None:
        """Key of the earliest hash within the distance, or None."""
        near: list[int] = []
        for band, (shift, width) in enumerate(self._bands):
            bits = perceptual >> shift & (1 << width) - 1
            probes = tuple(each.to_bytes(8, "big") for each in (bits, *(bits ^ 1 << bit for bit in range(width))))
            sql = f"SELECT perceptual, number FROM band_{band} WHERE bits IN ({', '.join('?' * len(probes))})"
            near += [
                number
                for other, number in self._tables.execute(sql, probes)
                if (perceptual ^ int.from_bytes(other, "big")).bit_count() <= self._distance
            ]
        if not near:
            return None
        key: str = self._tables.execute("SELECT key FROM pictures WHERE number = ?", (min(near),)).fetchone()[0]
        return key

    def add(self, perceptual: int, key: str) -> None:
        """Remember a hash that `find` did not find."""
        self._count += 1
        packed = perceptual.to_bytes(8, "big")  # SQLite's integers have a sign
        self._tables.execute("INSERT INTO pictures VALUES (?, ?)", (self._count, key))
        for band, (shift, width) in enumerate(self._bands):
            bits = (perceptual >> shift & (1 << width) - 1).to_bytes(8, "big")
            self._tables.execute(f"INSERT INTO band_{band} VALUES (?, ?, ?)", (bits, self._count, packed))
