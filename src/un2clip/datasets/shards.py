"""Checked image-text shards: tars in webdataset form, the index that describes them, and how both are read.

A shard holds `key.png` (or jpg, webp), `key.txt` and perhaps `key.json` for each sample; the text of one without a
caption is empty. Equal samples give equal bytes: no time, no owner, fixed order. webdataset, `tar` and
clip-benchmark read them as they are.
"""

import dataclasses
import hashlib
import json
import tarfile
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from un2clip.config import at_least, read_record
from un2clip.datasets import remote
from un2clip.datasets.images import decode
from un2clip.datasets.tars import DamagedTar, Group, Rejected, groups
from un2clip.errors import UserError
from un2clip.hashes import file_sha256_once

INDEX = "index.json"
END = tarfile.NUL * 2 * tarfile.BLOCKSIZE
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its caption, decoded (RGB)."""

    key: str
    image: Image.Image
    caption: str


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample as it is written: the image's file as bytes, and its extension (png, jpg or webp)."""

    key: str
    image: bytes
    extension: str
    caption: str
    metadata: Mapping[str, Any] | None

    def members(self) -> dict[str, bytes]:
        """Extension -> content of each of its members, in the order in which they stand in a shard."""
        members = {self.extension: self.image, "txt": self.caption.encode()}
        if self.metadata is not None:
            members["json"] = json.dumps(self.metadata, sort_keys=True).encode()
        return dict(sorted(members.items()))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of a split, as the index lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        at_least(self, 0, "samples", "bytes")
        if self.name != Path(self.name).name:
            raise ValueError(f"name must be that of a file, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `ingest` wrote, and what it did not.

    Attributes:
        splits: train and heldout -> their shards in order.
        rejected: reason -> number of samples, the most frequent first.
        captions: statistics of the captions kept.
        damaged_tars: source tar -> why it could not be read to its end.
    """

    splits: dict[str, tuple[Shard, ...]]
    rejected: dict[str, int]
    captions: dict[str, Any]
    damaged_tars: dict[str, str]

    def __post_init__(self) -> None:
        if other := self.splits.keys() - {"train", "heldout"}:
            raise ValueError(f"splits must be train and heldout, got {min(other)!r}")

    def count(self, split: str) -> int:
        """Samples kept in `split`."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    @property
    def kept(self) -> int:
        return sum(map(self.count, self.splits))

    @property
    def read(self) -> int:
        """Input samples: kept + rejected."""
        return self.kept + sum(self.rejected.values())

    def save(self, shards: Path) -> None:
        """Write `index.json` into the folder: the totals first, for a reader."""
        (shards / INDEX).write_text(json.dumps(self.totals() | dataclasses.asdict(self), indent=1) + "\n")

    def totals(self) -> dict[str, Any]:
        """What follows from the rest, and stands in the file all the same."""
        counts = {split: self.count(split) for split in self.splits}
        return {"read": self.read, "kept": self.kept, "rejected_total": self.read - self.kept, "samples": counts}


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What `Index.totals` wrote into the file."""

    read: int | None = None
    kept: int | None = None
    rejected_total: int | None = None
    samples: dict[str, int] | None = None


def read_index(shards: Path) -> Index:
    """Read the index of the folder that `ingest` wrote.

    Raises:
        UserError: there is none, it is broken, or a shard it lists is absent or of another size.
    """
    path = shards / INDEX
    data = remote.read(path) if remote.is_remote(path) else None
    index = read_record(Index, path, "ingest", data=data)
    said = read_record(Totals, path, "ingest", data=data)
    for name, total in index.totals().items():
        if getattr(said, name) not in (None, total):
            raise UserError(
                f"cannot read {path}: {name} is {getattr(said, name)}, but its shards and rejects add up to {total}; "
                "run `un2clip ingest` to make it"
            )
    for split, listed in index.splits.items():
        sizes = remote.entries(shards / split) if data is not None else {}
        for shard in listed:
            tar = shards / split / shard.name
            size = sizes.get(tar) if data is not None else tar.stat().st_size if tar.is_file() else None
            if size != shard.bytes:
                raise UserError(f"{tar} is absent or not the {shard.bytes} bytes of {path}; run `un2clip ingest` again")
    return index


def check_shard(tar: Path, shard: Shard, copy: Path | None = None) -> None:
    """Hold a shard, or a copy of it, against its hash in the index, at its first read in this process.

    Raises:
        UserError: its bytes are others: what is read from it would carry the name of other data.
    """
    if (found := file_sha256_once(copy or tar)) != shard.sha256:
        raise UserError(
            f"{tar} is not what `un2clip ingest` wrote: its bytes hash to {found[:12]}, {INDEX} says "
            f"{shard.sha256[:12]}; get it again, or run `un2clip ingest` again"
        )


def digest(shards: Path) -> str:
    """One sha256 of the whole data set, from the hashes of its shards in the index."""
    lines = [
        f"{split}/{shard.name} {shard.sha256}\n"
        for split, listed in sorted(read_index(shards).splits.items())
        for shard in listed
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def samples(folder: Path, tar: str = "*.tar") -> Iterator[Sample]:
    """Samples of one split's folder (`shards/train`), tars in order of name, one sample in memory at a time.

    Args:
        folder: looked at when `samples` is called, not when the first sample is asked for.
        tar: name of one shard, or a pattern of names.

    Raises:
        UserError: the folder has no such tar, or a tar is damaged or holds what `ingest` would reject.
    """
    tars = sorted(folder.glob(tar))
    if not tars:
        what = f"has no {tar}" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; run the stage that makes it (`un2clip ingest` makes shards/train)")
    return _samples(tars)


def _samples(tars: Iterable[Path]) -> Iterator[Sample]:
    for tar in tars:
        try:
            for group in groups(tar, max_bytes=tar.stat().st_size):
                try:
                    sample = _decode(group)
                except Exception as error:  # a fault of the sample, or nearly anything of Pillow's readers
                    raise UserError(f"{tar}: sample {group.key}: {error}; pass it through `un2clip ingest`") from None
                yield sample
        except DamagedTar as error:
            raise UserError(f"{tar}: {error}; make it again, or pass it through `un2clip ingest`") from None


def _decode(group: Group) -> Sample:
    if group.fault is not None:
        raise group.fault
    if len(group.image_extensions) != 1 or "txt" not in group.members:
        raise Rejected("one image and one txt needed", f"got {', '.join(group.members)}")
    image = decode(group.members[group.image_extensions[0]])
    return Sample(key=group.key, image=image, caption=group.members["txt"].decode())


def write_shards(folder: Path, encoded: Iterable[EncodedSample], samples_per_shard: int) -> tuple[Shard, ...]:
    """Write all samples to `folder/00000.tar`, ... in their order; see ShardWriter."""
    with ShardWriter(folder, samples_per_shard) as writer:
        for sample in encoded:
            writer.add(sample)
        return writer.close()


class ShardWriter:
    """Writes samples as they come, and cuts them into shards of equal size (give or take one) at the end.

    How many shards there are is known only when the last sample has come. So samples go to one nameless
    file on the same disk, already in the form of tar members, and `close` copies its stretches: memory is
    8 bytes a sample, and the disk needs the data twice for a moment.

    Raises:
        UserError: the folder already holds tars, which a reader would take for this data.
    """

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        assert samples_per_shard > 0
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder} already holds tars; delete it or name another folder")
        self._folder = folder
        self._samples_per_shard = samples_per_shard
        self._sizes = array("Q")
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.close()

    def add(self, sample: EncodedSample) -> None:
        """Append one sample. Keys must differ; the last part of a key has no dot."""
        assert "." not in sample.key.rpartition("/")[2], f"a key ends at its first dot: {sample.key}"
        blocks = [tar_member(f"{sample.key}.{extension}", each) for extension, each in sample.members().items()]
        self._sizes.append(self._spool.write(b"".join(blocks)))

    def close(self) -> tuple[Shard, ...]:
        """Write the shards; no shard for no samples."""
        self._spool.seek(0)
        bounds = shard_bounds(len(self._sizes), self._samples_per_shard)
        return tuple(
            self._write_shard(f"{i:05d}.tar", self._sizes[first:last])
            for i, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False))
        )

    def _write_shard(self, name: str, sizes: array) -> Shard:
        sha256 = hashlib.sha256()
        left = sum(sizes)
        with (self._folder / name).open("wb") as tar:
            while left:
                chunk = self._spool.read(min(left, _COPY_BYTES))
                left -= tar.write(chunk)
                sha256.update(chunk)
            tar.write(END)
            sha256.update(END)
            return Shard(name=name, samples=len(sizes), bytes=tar.tell(), sha256=sha256.hexdigest())


def shard_bounds(samples: int, samples_per_shard: int) -> list[int]:
    """Where a split is cut so that its shards have equally many samples, give or take one; nothing for no samples."""
    count = -(-samples // samples_per_shard)
    return [i * samples // count for i in range(count + 1)] if count else []


def tar_member(name: str, content: bytes) -> bytes:
    """A tar member: header (TarInfo's own defaults: time 0, owner 0, mode 644), content, zeros to a full block."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf() + content + tarfile.NUL * (-len(content) % tarfile.BLOCKSIZE)
