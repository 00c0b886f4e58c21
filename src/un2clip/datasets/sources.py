"""Where `ingest` reads: the tars of a folder, every input sample of one in order, and what is not read there."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from un2clip.datasets import remote
from un2clip.datasets.tars import DamagedTar, Group, Keys, Rejected, groups, scattered_keys
from un2clip.errors import UserError, shown
from un2clip.hashes import is_hidden

#: Held-out first: what it keeps never depends on the training data when duplicates are rejected.
SPLITS = ("heldout", "train")
FILE, FOLDER = "file", "folder"
#: The reason by which samples are counted whose image and text do not stand side by side.
SCATTERED = "members apart; make the tar with `tar --sort=name`"
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst|zip)$", re.IGNORECASE)
_NAMED = 3  # of each kind of file that is not read


@dataclass
class Reading:
    """What is counted while a tar is read.

    Attributes:
        damaged: why it cannot be read to its end; "" where it can.
        hidden: members that are dot-files.
    """

    damaged: str = ""
    hidden: int = 0


def find_sources(images: Path, shards: Path) -> list[tuple[str, Path]]:
    """(split, tar) of every tar, in order."""
    if shards.resolve() in (images.resolve(), *images.resolve().parents):
        raise UserError(f"shards={shards} would replace its own source images={images}; name another folder")
    listed = _listed(images)
    flat = [("", tar) for tar in _tars(listed)]
    folders = {name: _listed(images / name) for name in SPLITS if listed.get(images / name) == FOLDER}
    split = [(name, tar) for name, below in folders.items() for tar in _tars(below)]
    said = remote.address(images)
    if flat and split:
        raise UserError(f"{said} has tars both of its own and in train/ or heldout/; keep one of the two layouts")
    if {name for name, _ in split} == set(SPLITS):
        return split
    if not flat:
        what = "has no *.tar of its own" if remote.is_remote(images) or images.is_dir() else "does not exist"
        if other := not_read(images, shards, split):
            what += f", but {other}"
        raise UserError(f"{said} {what}; give a folder of tars, or one with tars in both train/ and heldout/")
    return flat


def not_read(images: Path, shards: Path, sources: Iterable[tuple[str, Path]]) -> str:
    """What lies beside the tars and is not opened, in words; of each kind the first few by name."""
    read = {tar for _, tar in sources}
    folders = [images, *sorted({tar.parent for tar in read} - {images})]
    others: dict[str, list[str]] = defaultdict(list)
    for path, what in (each for folder in folders for each in sorted(_listed(folder).items())):
        if path not in read and path not in folders and not is_hidden(path.name) and path.resolve() != shards.resolve():
            others[_kind(path, what)].append(path.relative_to(images).as_posix())
    return ", ".join(f"{_some(names)} ({kind})" for kind, names in others.items())


def read_tar(path: Path, max_bytes: int, reading: Reading) -> Iterator[Group]:
    """Every input sample of a tar, in order. The first of a key has it, be it kept or not; the others get a fault."""
    keys = Keys()
    hidden: list[str] = []
    scattered: set[str] | None = None
    try:
        for group in groups(path, max_bytes, hidden):
            if scattered is None and not group.is_pair:
                scattered = scattered_keys(path)
            if scattered and group.key in scattered:
                group.fault = group.fault or Rejected(SCATTERED, f"here stand {', '.join(group.members)}")
            if group.fault is None:  # one with a fault takes no key away from another
                try:
                    keys.claim(group.key)
                except Rejected as duplicate:
                    group.fault = duplicate
            yield group
    except DamagedTar as damage:
        reading.damaged = str(damage)
    reading.hidden = len(hidden)


def _listed(folder: Path) -> dict[Path, str]:
    """What lies in a folder, by path: FILE, FOLDER or neither; nothing where there is no such folder."""
    if remote.is_remote(folder):
        return {path: FOLDER if size is None else FILE for path, size in remote.entries(folder).items()}
    found = folder.iterdir() if folder.is_dir() else ()
    return {path: FOLDER if path.is_dir() else FILE if path.is_file() else "" for path in found}


def _tars(listed: dict[Path, str]) -> list[Path]:
    return sorted(path for path, what in listed.items() if _is_tar(path) and what == FILE)


def _is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not is_hidden(path.name)


def _kind(path: Path, what: str) -> str:
    """Why a file or folder beside the tars is not read, and what would change that."""
    if what == FOLDER:
        return "a folder: its tars are read where --images names it, or where they are moved up"
    if _COMPRESSED.search(path.name):
        return "compressed: unpack it to a .tar"
    return "not a .tar" if what == FILE else "no file"


def _some(names: list[str]) -> str:
    """The names; of many the first few, and how many others there are of each ending."""
    if len(names) <= _NAMED:
        return ", ".join(map(shown, names))
    others = Counter(Path(name).suffix or "no ending" for name in names[_NAMED:])
    more = " and ".join(f"{count} more of {shown(ending)}" for ending, count in others.items())
    return f"{', '.join(map(shown, names[:_NAMED]))}, {more}"
