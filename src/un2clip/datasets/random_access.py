"""One file of a shard by its number, without reading the shard: training wants samples in an order of its own."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from un2clip.datasets.copies import held
from un2clip.datasets.images import decode
from un2clip.datasets.shards import read_index
from un2clip.datasets.tars import DAMAGE, IMAGE_EXTENSIONS, headers, open_tar
from un2clip.files.texts import decode as decode_text
from un2clip.files.texts import parse_json


class CorruptSample(Exception):
    """Why one sample cannot be read."""


class Location(NamedTuple):
    """Where a file stands in a tar."""

    key: str
    offset: int
    bytes: int


@functools.lru_cache(maxsize=4)
def locate(tar: Path, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> tuple[Location, ...]:
    """The files of a shard that `ingest` wrote, in its order: its images, or those with other extensions.

    Those before the damage, if it is damaged: what is missing is unreadable, sample by sample.
    """
    found: list[Location] = []
    try:
        with open_tar(tar) as (_, members):
            for member, _ in headers(members):
                key, _, extension = member.name.rpartition(".")
                if extension in extensions:
                    found.append(Location(key, member.offset_data, member.size))
    except DAMAGE:
        pass
    return tuple(found)


def read_bytes(tar: Path, location: Location) -> bytes:
    """The content of one file.

    Raises:
        OSError: the tar ends within it.
    """
    with tar.open("rb") as file:
        file.seek(location.offset)
        content = file.read(location.bytes)
    if len(content) < location.bytes:
        raise OSError(f"the tar ends within it, after {len(content)} of {location.bytes} bytes")
    return content


def read_image(tar: Path, number: int) -> tuple[str, Image.Image]:
    """Key and image (RGB) of the sample at `number`.

    Raises:
        CorruptSample: the tar ends before it, or its bytes are no image.
    """
    locations = locate(tar)
    if number >= len(locations):
        raise CorruptSample(f"{tar}: sample {number} is missing or behind a damaged header")
    key = locations[number].key
    try:
        return key, decode(read_bytes(tar, locations[number]))
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise CorruptSample(f"{tar}: sample {key}: {type(error).__name__}: {error}") from None


def metadata_of(shards: Path, split: str) -> Iterator[dict[str, Any]]:
    """The metadata of each sample of a split, in its order; none of a sample that has none."""
    for shard in read_index(shards).splits[split]:
        with held(shards / split / shard.name, shard) as tar:
            content = {each.key: each for each in locate(tar, ("json",))}
            for image in locate(tar):
                if image.key in content:
                    name = f"{tar}: {image.key}.json"
                    yield parse_json(decode_text(read_bytes(tar, content[image.key]), name), name)
                else:
                    yield {}
