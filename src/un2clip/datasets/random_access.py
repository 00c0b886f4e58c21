"""One image of a shard by its number, without reading the shard: training wants samples in an order of its own."""

import functools
import tarfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from un2clip.datasets.images import decode
from un2clip.datasets.tars import IMAGE_EXTENSIONS


class Unreadable(Exception):
    """Why one sample cannot be read."""


class Location(NamedTuple):
    """Where an image's file stands in a tar."""

    key: str
    offset: int
    bytes: int


@functools.lru_cache(maxsize=4)
def locate(tar: Path) -> tuple[Location, ...]:
    """The images of a shard that `ingest` wrote, in its order; those before the damage, if it is damaged."""
    found: list[Location] = []
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
            while (member := members.next()) is not None:
                members.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
                key, _, extension = member.name.rpartition(".")
                if extension in IMAGE_EXTENSIONS:
                    found.append(Location(key, member.offset_data, member.size))
    except (tarfile.TarError, OSError, ValueError):
        pass  # what is missing is unreadable, sample by sample
    return tuple(found)


def read_image(tar: Path, number: int) -> tuple[str, Image.Image]:
    """Key and image (RGB) of the sample at `number`.

    Raises:
        Unreadable: the tar ends before it, or its bytes are no image.
    """
    locations = locate(tar)
    if number >= len(locations):
        raise Unreadable(f"{tar}: sample {number} is missing or behind a damaged header")
    key, offset, size = locations[number]
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            return key, decode(file.read(size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{tar}: sample {key}: {type(error).__name__}: {error}") from None
