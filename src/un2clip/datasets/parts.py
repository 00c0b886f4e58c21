"""The first map of `ingest`: of one source tar its checked samples and its rejects, in files that can be gone on with.

Beside each other lie NAME.data, the contents of the samples that are good by themselves, NAME.rows, a line of JSON for
each input sample in the tar's order, and NAME.json, which says of what they are made and whether they are whole. Data
are written before the line that tells of them; so whatever ends a process, all lines but the last are right.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import PIL
from tqdm import tqdm

from un2clip import __version__
from un2clip.config import read_record
from un2clip.datasets import remote
from un2clip.datasets.duplicates import Fingerprint
from un2clip.datasets.ingesting import Checked, Ingest, check_in_order
from un2clip.datasets.sources import Reading, read_tar
from un2clip.datasets.tables import digest
from un2clip.datasets.tars import Group, Rejected
from un2clip.errors import UserError, disks_in_words
from un2clip.files.outputs import write_json
from un2clip.hashes import file_sha256

T = TypeVar("T")
UNREADABLE = "unreadable"  # instead of the hash of a tar


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one input sample before others are looked at.

    Attributes:
        key: local to its tar.
        tar_bytes: read of the tar for it.
        reason: why it is rejected; "" for a good one.
        detail: of the reject.
        claims: whether it has its key, be it kept or not.
        members: extension -> bytes of each content in the data file, in their order.
        crc: CRC-32 of these bytes.
        draw: see Checked.
        pixels: of the fingerprint, hexadecimal; "" where there is none.
        perceptual: of the fingerprint.
        caption: hash of the caption, hexadecimal; "" where there is none.
    """

    key: str
    tar_bytes: int
    reason: str = ""
    detail: str = ""
    claims: bool = True
    members: dict[str, int] = dataclasses.field(default_factory=dict)
    crc: int = 0
    draw: float = 0.0
    pixels: str = ""
    perceptual: int = 0
    caption: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.members.values())

    @property
    def fingerprint(self) -> Fingerprint | None:
        return Fingerprint(pixels=bytes.fromhex(self.pixels), perceptual=self.perceptual) if self.pixels else None


@dataclass(frozen=True, kw_only=True)
class Made:
    """NAME.json.

    Attributes:
        made_of: hash of the tar, and of what else decides what is made of it.
        size, mtime_ns: of the tar when it was hashed; while they are the same it is not hashed again.
        done: whether the whole tar was read.
        damaged, hidden: see Reading.
    """

    made_of: str
    size: int
    mtime_ns: int
    done: bool
    damaged: str
    hidden: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A source tar, as it is handed to a worker; its text is its path within the source.

    Attributes:
        split: "" where the source has none.
        folder: of the files that are made.
        threads: that check samples.
    """

    params: Ingest
    images: Path
    tar: Path
    split: str
    folder: Path
    threads: int

    def __str__(self) -> str:
        return self.tar.relative_to(self.images).as_posix()

    def file(self, suffix: str) -> Path:
        """One of the files that are made of it, whatever letters its name has."""
        name = hashlib.sha256(str(self).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self.folder / f"{name}.{suffix}"

    def made(self) -> Made | None:
        """What was made of it so far; None for nothing."""
        try:
            return read_record(Made, self.file("json"), "ingest")
        except UserError:
            return None

    def is_done(self) -> bool:
        """Whether nothing is left to do, as far as can be told without reading the tar."""
        made = self.made()
        return (
            made is not None
            and made.done
            and made.made_of.endswith(self._rest())
            and not made.made_of.startswith(UNREADABLE)
            and (made.size, made.mtime_ns) == self.stamp()
        )

    def stamp(self) -> tuple[int, int]:
        """Size and time of the tar; (-1, 0) where it is no more. Of a remote one see remote.stamp."""
        if remote.is_remote(self.tar):
            return remote.stamp(self.tar)
        try:
            stat = self.tar.stat()
        except FileNotFoundError:
            return -1, 0
        return stat.st_size, stat.st_mtime_ns

    @contextmanager
    def near(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """The tar as a file of this machine, and its stamp. A remote one is copied beside what is made of it."""
        stamp, copy = self.stamp(), self.file("tar")
        if not remote.is_remote(self.tar):
            yield self.tar, stamp
            return
        try:
            remote.fetch(self.tar, copy)
            yield copy, stamp
        finally:
            copy.unlink(missing_ok=True)

    def made_of(self, tar: Path) -> str:
        """The hash of the tar, or of its copy, and what decides besides what is made of it; the file is read."""
        try:
            sha256 = file_sha256(tar)
        except OSError:  # whatever it is, the reader of tars reports it
            sha256 = UNREADABLE
        return f"{sha256}{self._rest()}"

    def _rest(self) -> str:
        numbers = (self.params.short_side_px, self.params.max_megapixels, self.params.max_aspect_ratio)
        return f" {numbers} {self.params.duplicates} un2clip {__version__} pillow {PIL.__version__}"

    def rows(self) -> Iterator[Row]:
        """A row for each input sample, in order."""
        with self.file("rows").open("rb") as lines:
            yield from read_lines(Row, lines)


def read_lines(cls: type[T], lines: Iterable[bytes]) -> Iterator[T]:
    """Lines of JSON that this very version wrote: a fit for `cls` is not looked for, since there are many."""
    return (cls(**json.loads(line)) for line in lines)


def check_tar(part: Part) -> None:
    """Check every sample of a tar, from where an earlier call was cut off.

    Raises:
        UserError: the tar changed meanwhile, or its bucket does not let us in.
        DiskRefused: the disk is full; what was made is kept.
    """
    with disks_in_words([part.folder]), part.near() as (tar, stamp):
        made, made_of = part.made(), part.made_of(tar)
        if made is None or made.made_of != made_of or made_of.startswith(UNREADABLE):
            for suffix in ("json", "rows", "data"):
                part.file(suffix).unlink(missing_ok=True)
            made = Made(made_of=made_of, size=0, mtime_ns=0, done=False, damaged="", hidden=0)
            write_json(part.file("json"), dataclasses.asdict(made))
        if not made.done:
            reading = _check(part, tar, _whole_rows(part))
            made = dataclasses.replace(made, done=True, damaged=reading.damaged, hidden=reading.hidden)
        if part.stamp() != stamp and (tar != part.tar or part.made_of(tar) != made_of):  # a copy stays as it is
            for suffix in ("json", "rows", "data"):
                part.file(suffix).unlink(missing_ok=True)
            raise UserError(
                f"{remote.address(part.tar)} changed while it was read; let what writes it end, then the same command "
                "goes on"
            )
        size, mtime_ns = stamp
        write_json(part.file("json"), dataclasses.asdict(dataclasses.replace(made, size=size, mtime_ns=mtime_ns)))


def _whole_rows(part: Part) -> int:
    """How many samples an earlier call has left; what it was writing when it ended is cut off."""
    with part.file("rows").open("a+b") as rows, part.file("data").open("a+b") as data:
        rows.seek(0)
        data.seek(0)
        count = end = data_end = 0
        for line in rows:
            row = _parse(line)
            content = data.read(row.bytes) if row else b""
            if row is None or len(content) != row.bytes or zlib.crc32(content) != row.crc:
                break
            count, end, data_end = count + 1, end + len(line), data_end + row.bytes
        rows.truncate(end)
        data.truncate(data_end)
    return count


def _parse(line: bytes) -> Row | None:
    try:
        return next(read_lines(Row, [line])) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None


def _check(part: Part, tar: Path, before: int) -> Reading:
    """Check the samples behind the first `before`, and write them."""
    reading = Reading()
    groups = read_tar(tar, part.params.max_bytes, reading)
    passed = sum(group.tar_bytes for group in islice(groups, before))
    with (
        part.file("data").open("ab") as data,
        part.file("rows").open("ab") as rows,
        tqdm(
            total=part.stamp()[0], initial=passed, unit="B", unit_scale=True, desc=f"ingest {part}", leave=False,
            disable=multiprocessing.parent_process() is not None or None, delay=2,
        ) as bar,
    ):  # fmt: skip
        for group, checking in check_in_order(groups, part.params, part.threads):
            try:
                row, content = _good(group, checking.result())
            except Rejected as rejected:
                row, content = _rejected(group, rejected), b""
            data.write(content)
            data.flush()
            rows.write(json.dumps(vars(row)).encode() + b"\n")
            rows.flush()
            bar.update(group.tar_bytes)
    return reading


def _good(group: Group, checked: Checked) -> tuple[Row, bytes]:
    members, seen = checked.sample.members(), checked.fingerprint
    content = b"".join(members.values())
    row = Row(
        key=group.key,
        tar_bytes=group.tar_bytes,
        members={extension: len(each) for extension, each in members.items()},
        crc=zlib.crc32(content),
        draw=checked.draw,
        pixels=seen.pixels.hex() if seen else "",
        perceptual=seen.perceptual if seen else 0,
        caption=digest(checked.sample.caption).hex() if checked.sample.caption else "",
    )
    return row, content


def _rejected(group: Group, why: Rejected) -> Row:
    return Row(
        key=group.key,
        tar_bytes=group.tar_bytes,
        reason=why.reason,
        detail=why.detail,
        claims=group.fault is None,
    )
