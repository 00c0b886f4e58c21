"""Read image-text tars that may be hostile or damaged, one input sample at a time, never to disk.

One input sample is a run of adjacent members with one key, as webdataset groups them: the path up to the
first dot of its last part is the key, what follows that dot the extension. A member without an extension is
an input sample of its own (a rejected one); a folder is none, and neither is a file or folder whose name begins
with a dot, as Finder and others leave them. So every member that carries anything belongs to exactly one sample,
and kept + rejected can be held against what was read.

The standard library reads the tars because webdataset's reader cannot say what this stage must report: it
passes over links and nameless members in silence and takes a tar that was cut off for one that ended.
"""

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from un2clip.hashes import is_hidden

#: Extensions an image may have, in lower case.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
#: All extensions whose content is kept: images, captions, metadata, and the class of a labelled image.
_CONTENTS = (*IMAGE_EXTENSIONS, "txt", "json", "cls")
_BLOCK_BYTES = 1 << 20
_TEXT_BYTES = 1 << 24  # of a caption, metadata or class, at most
#: An end mark is two blocks of zeros, and tar fills up its last record of 20 blocks with more.
_MOST_ZEROS = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
#: What `tarfile` raises on broken headers. RecursionError: a chain of extended headers a thousand long.
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, MemoryError)


class Rejected(Exception):
    """Why a sample is not kept: a reason to count by, and a detail of this one sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DamagedTar(Exception):
    """A tar cannot be read, or not to its end; everything readable has been yielded before."""


@dataclass
class Group:
    """One input sample as it stands in its tar.

    Attributes:
        key: path up to the first dot of the last part.
        members: extension in lower case -> content; empty where the content is not wanted.
        fault: why the sample cannot be kept, if its members' headers already say so.
        tar_bytes: bytes of the tar read for it, for progress.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    fault: Rejected | None = None
    tar_bytes: int = 0

    @property
    def image_extensions(self) -> list[str]:
        return [extension for extension in self.members if extension in IMAGE_EXTENSIONS]

    @property
    def is_pair(self) -> bool:
        """Whether it has one image and a text."""
        return len(self.image_extensions) == 1 and "txt" in self.members


class Taken(Protocol):
    """What keys are kept in: a set of texts, in memory or not."""

    def __contains__(self, text: str, /) -> bool: ...

    def add(self, text: str, /) -> None: ...


class Keys:
    """Names of samples are local to their tar, and two downloads number from zero: keys that are unique over all."""

    def __init__(self, taken: "Taken | None" = None) -> None:
        """Args: taken: keeps the keys of all tars; a set in memory where nothing is given."""
        self._taken: Taken = set() if taken is None else taken
        self._of_tar: set[str] = set()
        self._tar = ""

    def open(self, tar: str) -> None:
        """Go on with the next tar, of this name."""
        self._tar, self._of_tar = re.sub(r"[^\w./-]", "_", tar.rpartition(".")[0] or tar), set()

    def claim(self, key: str) -> str:
        """The key itself, or behind the name of its tar where an earlier tar has such a sample: `00001/000000007`.

        Raises:
            Rejected: an earlier sample of this very tar is called so.
        """
        if key in self._of_tar:
            raise Rejected("duplicate key", "an earlier sample of the same tar is called so")
        self._of_tar.add(key)
        unique = key
        while unique in self._taken:
            unique = f"{self._tar}/{unique}"
        self._taken.add(unique)
        return unique


def groups(path: Path, max_bytes: int, passed_over: list[str] | None = None) -> Iterator[Group]:
    """The input samples of one uncompressed tar, in its order; one sample in memory at a time.

    Args:
        path: the tar.
        max_bytes: a member larger than this is not read, and its sample has a fault.
        passed_over: gets the names of the dot-files, where somebody wants them.

    Raises:
        DamagedTar: after the last readable sample, if the tar is cut off or is no tar.
    """
    group: Group | None = None
    damage = ""
    try:
        with open_tar(path) as (file, tar):
            for member, size in headers(tar):
                key, extension = _split(member.name)
                fault = _fault(member, max_bytes if extension in IMAGE_EXTENSIONS else min(max_bytes, _TEXT_BYTES))
                if is_hidden(member.name):
                    if passed_over is not None:
                        passed_over.append(member.name)
                    continue
                if not extension:
                    yield Group(key, {}, fault or Rejected("no extension", member.name), size)
                    continue
                # A repeated extension opens a new sample: the same key twice in a row is two samples.
                if group is None or key != group.key or extension in group.members:
                    if group is not None:
                        yield group
                    group = Group(key)
                group.fault = group.fault or fault
                group.members[extension] = b""
                group.tar_bytes += size
                if fault is None and extension in _CONTENTS:
                    group.members[extension] = _content(tar, member, group)
            _check_end(file, tar.offset)
    except DAMAGE as error:
        damage = f"{type(error).__name__}: {error}"
        if group is not None and group.fault is None and set(group.members) <= {*IMAGE_EXTENSIONS, "json"}:
            group.fault = Rejected("cut off", "the tar cannot be read behind its image, where its text would be")
    if group is not None:
        yield group
    if damage:
        raise DamagedTar(damage)


def scattered_keys(path: Path) -> set[str]:
    """Keys whose members stand apart in a tar, as where all images come first; only headers are read."""
    extensions: dict[str, str] = {}
    found: set[str] = set()
    last = ""
    with suppress(*DAMAGE), open_tar(path) as (_, tar):
        for member, _ in headers(tar):
            key, extension = _split(member.name)
            if not extension or is_hidden(member.name):
                continue
            known = extensions.get(key, ".")
            if key != last and known != "." and f".{extension}." not in known:
                found.add(key)
            extensions[key], last = f"{known}{extension}.", key
    return found


@contextmanager
def open_tar(path: Path) -> Iterator[tuple[IO[bytes], tarfile.TarFile]]:
    """An uncompressed tar, and the file beneath it; every tar that is read here is opened so."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        yield file, tar


def headers(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member but folders, and how far the tar has been read since the last one, in bytes."""
    before = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # every header seen: too many in a large tar
        if member.size < 0:
            raise tarfile.ReadError(f"negative size of {member.name!r}")  # or tarfile would walk in a circle
        if not member.isdir():
            yield member, tar.offset - before
            before = tar.offset


def _split(name: str) -> tuple[str, str]:
    """Key and extension, `a/b.seg.PNG` -> `a/b`, `seg.png`; without an extension the key is the whole name."""
    path = PurePosixPath(name)  # drops a leading "./"
    stem, _, extension = path.name.partition(".")
    return (str(path.parent / stem), extension.lower()) if stem and extension else (name, "")


def _fault(member: tarfile.TarInfo, max_bytes: int) -> Rejected | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not member.name.isprintable():
        return Rejected("unsafe name", member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        target = f" -> {member.linkname}" if member.linkname else ""
        return Rejected("link or special file", f"{member.name}{target} (tar type {member.type!r})")
    if member.size > max_bytes:
        return Rejected("too many bytes", f"{member.name} has {member.size} bytes, at most {max_bytes} are read")
    return None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, group: Group) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None, "a regular member has content"
    try:
        return stream.read()
    except DAMAGE:
        group.fault = Rejected("cut off", f"the tar ends within {member.name}")
        raise


def _check_end(file: IO[bytes], offset: int) -> None:
    """After its last member a tar has a few zeros and nothing else; `tarfile` takes anything for the end.

    A disk or a download that lost the tail of a file often leaves zeros in its place.
    """
    file.seek(offset)
    if (block := file.read(tarfile.BLOCKSIZE)) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"{'broken header' if block else 'no end mark'} at byte {offset}")
    zeros = len(block)
    while block := file.read(_BLOCK_BYTES):
        zeros += len(block)
        if block.strip(tarfile.NUL):
            raise tarfile.ReadError(f"more data after the end mark at byte {offset}, which is not read")
    if zeros > _MOST_ZEROS:
        raise tarfile.ReadError(f"{zeros} bytes of zeros from byte {offset} on, more than an end mark: a lost tail")
