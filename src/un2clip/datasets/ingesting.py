"""The checker of `ingest`: every input sample of a tar, checked by itself, in order."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from un2clip.config import at_least
from un2clip.datasets.captions import check_caption
from un2clip.datasets.duplicates import Fingerprint, Mode, fingerprint
from un2clip.datasets.engine import Engine
from un2clip.datasets.images import STRIP, check_image
from un2clip.datasets.shards import EncodedSample
from un2clip.datasets.tars import Group, Rejected
from un2clip.errors import UserError
from un2clip.files.texts import decode, parse_json

_BYTES_PER_PIXEL = 4


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """The section `ingest` of params.yaml, where the meanings and units are."""

    short_side_px: int
    max_megapixels: float
    max_aspect_ratio: float
    samples_per_shard: int
    heldout_fraction: float
    duplicates: Mode
    near_distance: int
    processes: int
    engine: Engine

    def __post_init__(self) -> None:
        pillow = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        if self.short_side_px < 1:
            raise ValueError(f"short_side_px must be at least 1, got {self.short_side_px}")
        if not 0 < self.max_megapixels <= pillow:
            raise ValueError(f"max_megapixels must be in (0, {pillow}] (Pillow's limit), got {self.max_megapixels}")
        if not 1 <= self.max_aspect_ratio <= STRIP:
            raise ValueError(f"max_aspect_ratio must be 1 to {STRIP} (views cut others), got {self.max_aspect_ratio}")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction must be in [0, 1), got {self.heldout_fraction}")
        if not 0 <= self.near_distance < 32:
            raise ValueError(f"near_distance must be 0 to 31 bits (chance is 32 of 64), got {self.near_distance}")
        at_least(self, 0, "processes")

    @property
    def max_bytes(self) -> int:
        """Members above this are not read: no sensible file is larger than the largest image's pixels."""
        return int(self.max_megapixels * 1e6) * _BYTES_PER_PIXEL


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A sample that is good by itself; `draw` in [0, 1) is the hash of the source's image file."""

    sample: EncodedSample
    draw: float
    fingerprint: Fingerprint | None


def check_in_order(groups: Iterable[Group], params: Ingest, threads: int) -> Iterator[tuple[Group, "Future[Checked]"]]:
    """Check samples in threads, in order, a bounded number at a time (Executor.map would take all at once).

    Threads of one process: Pillow and hashlib let go of the interpreter's lock where the time goes.
    """
    waiting: deque[tuple[Group, Future[Checked]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for group in groups:
            waiting.append((group, pool.submit(check, group, params)))
            if len(waiting) > 2 * threads:
                yield waiting.popleft()
        yield from waiting


def check(group: Group, params: Ingest) -> Checked:
    """Check one input sample by itself. It needs an image; a caption it may have.

    Raises:
        Rejected: with the reason.
    """
    if group.fault is not None:
        raise group.fault
    caption, metadata = check_caption(group.members.get("txt", b"")), _metadata(group)
    if len(group.image_extensions) != 1:
        reason = "two images" if group.image_extensions else "missing image"
        raise Rejected(reason, f"it has {', '.join(group.members)}")
    original = group.members[group.image_extensions[0]]
    image, encoded, extension = check_image(
        original, params.short_side_px, params.max_megapixels, params.max_aspect_ratio
    )
    return Checked(
        sample=EncodedSample(key=group.key, image=encoded, extension=extension, caption=caption, metadata=metadata),
        # The file and not the pixels, so that equal images share a split whatever the parameters are.
        draw=int.from_bytes(hashlib.sha256(original).digest()[:6], "big") / 2**48,
        fingerprint=fingerprint(image, params.duplicates),
    )


def _metadata(group: Group) -> dict[str, Any] | None:
    if "json" not in group.members:
        return None
    try:
        metadata = parse_json(decode(group.members["json"], group.key), group.key, nan=True)
    except UserError as error:
        raise Rejected("broken json", str(error)) from None
    if not isinstance(metadata, dict):
        raise Rejected("broken json", f"an object is needed, got {type(metadata).__name__}")
    return metadata
