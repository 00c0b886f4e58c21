"""The checker of `ingest`: every input sample of some tars, checked by itself, in order, and what became of it."""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from un2clip.datasets.captions import CaptionStatistics, check_caption
from un2clip.datasets.duplicates import Fingerprint, Mode, fingerprint
from un2clip.datasets.images import check_image
from un2clip.datasets.shards import EncodedSample, Index, Shard
from un2clip.datasets.tars import DamagedTar, Group, Rejected, groups
from un2clip.errors import UserError
from un2clip.files.texts import decode, parse_json

#: Held-out first: what it keeps never depends on the training data when duplicates are rejected.
SPLITS = ("heldout", "train")
_BYTES_PER_PIXEL = 4


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """The section `ingest` of params.yaml, where the meanings and units are."""

    short_side_px: int
    max_megapixels: float
    samples_per_shard: int
    heldout_fraction: float
    duplicates: Mode
    near_distance: int

    def __post_init__(self) -> None:
        pillow = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        if self.short_side_px < 1:
            raise ValueError(f"short_side_px must be at least 1, got {self.short_side_px}")
        if not 0 < self.max_megapixels <= pillow:
            raise ValueError(f"max_megapixels must be in (0, {pillow}] (Pillow's limit), got {self.max_megapixels}")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction must be in [0, 1), got {self.heldout_fraction}")
        if not 0 <= self.near_distance < 32:
            raise ValueError(f"near_distance must be 0 to 31 bits (chance is 32 of 64), got {self.near_distance}")

    @property
    def max_bytes(self) -> int:
        """Members above this are not read: no sensible file is larger than the largest image's pixels."""
        return int(self.max_megapixels * 1e6) * _BYTES_PER_PIXEL


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input sample and where it stands: its split ("" where the source has none) and its tar."""

    split: str
    tar: str
    group: Group


def find_sources(images: Path, shards: Path) -> list[tuple[str, Path]]:
    """(split, tar) of every tar, in order."""
    if shards.resolve() in (images.resolve(), *images.resolve().parents):
        raise UserError(f"shards={shards} would replace its own source images={images}; name another folder")
    flat = [("", tar) for tar in sorted(images.glob("*.tar"))]
    split = [(name, tar) for name in SPLITS for tar in sorted((images / name).glob("*.tar"))]
    if flat and split:
        raise UserError(f"{images} has tars both of its own and in train/ or heldout/; keep one of the two layouts")
    if {name for name, _ in split} == set(SPLITS):
        return split
    if not flat:
        what = "has no *.tar of its own" if images.is_dir() else "does not exist"
        raise UserError(f"{images} {what}; give a folder of tars, or one with tars in both train/ and heldout/")
    return flat


def read_sources(
    sources: Iterable[tuple[str, Path]], images: Path, params: Ingest, report: "Report"
) -> Iterator[Source]:
    """Every input sample in order. The first of a key has it, be it kept or not; the others get a fault."""
    tar_of_key: dict[str, str] = {}
    for split, path in sources:
        tar = path.relative_to(images).as_posix()
        try:
            for group in groups(path, params.max_bytes):
                report.read += 1
                if group.fault is None and group.key in tar_of_key:
                    group.fault = Rejected("duplicate key", f"first in {tar_of_key[group.key]}")
                elif group.fault is None:
                    tar_of_key[group.key] = tar
                yield Source(split=split, tar=tar, group=group)
        except DamagedTar as damage:
            report.damaged_tars[tar] = str(damage)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A sample that is good by itself; `draw` in [0, 1) is the hash of the source's image file."""

    sample: EncodedSample
    draw: float
    fingerprint: Fingerprint | None


def check_in_order(sources: Iterable[Source], params: Ingest) -> Iterator[tuple[Source, "Future[Checked]"]]:
    """Check samples in threads, in order, a bounded number at a time (Executor.map would take all at once).

    Threads and not processes: Pillow and hashlib let go of the interpreter's lock where the time goes.
    """
    workers = os.cpu_count() or 1
    waiting: deque[tuple[Source, Future[Checked]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for source in sources:
            waiting.append((source, pool.submit(check, source.group, params)))
            if len(waiting) > 2 * workers:
                yield waiting.popleft()
        yield from waiting


def check(group: Group, params: Ingest) -> Checked:
    """Check one input sample by itself.

    Raises:
        Rejected: with the reason.
    """
    if group.fault is not None:
        raise group.fault
    if "txt" not in group.members:
        raise Rejected("missing text", f"members: {', '.join(group.members)}")
    caption, metadata = check_caption(group.members["txt"]), _metadata(group)
    if len(group.image_extensions) != 1:
        reason = "two images" if group.image_extensions else "missing image"
        raise Rejected(reason, f"members: {', '.join(group.members)}")
    original = group.members[group.image_extensions[0]]
    image, encoded, extension = check_image(original, params.short_side_px, params.max_megapixels)
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


class Report:
    """Counts what comes in, what is kept and why the rest is not; writes every reject as it comes."""

    def __init__(self, rejects: IO[str]) -> None:
        self.read = 0
        self.damaged_tars: dict[str, str] = {}
        self.first = "nothing was read"
        self._rejects = rejects
        self._reasons: Counter[str] = Counter()
        self._captions = CaptionStatistics()

    def keep(self, caption: str) -> None:
        """Count one sample kept."""
        self._captions.add(caption)

    def reject(self, source: Source, why: Rejected) -> None:
        """Count and list one sample that is not kept."""
        if not self._reasons:
            self.first = f"{source.tar} {source.group.key!r}: {why}"
        self._reasons[why.reason] += 1
        line = {"tar": source.tar, "key": source.group.key, "reason": why.reason, "detail": why.detail}
        self._rejects.write(json.dumps(line) + "\n")

    def index(self, splits: dict[str, tuple[Shard, ...]]) -> Index:
        """The index of the finished shards."""
        rejected = dict(sorted(self._reasons.items(), key=lambda item: (-item[1], item[0])))
        captions = self._captions.summary()
        return Index(splits=splits, rejected=rejected, captions=captions, damaged_tars=self.damaged_tars)
