"""The catalogue of benchmark data sets (catalogue.yaml), and the check that a folder holds one of them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from un2clip.config import build, lookup, read_yaml
from un2clip.datasets.tars import DamagedTar, groups
from un2clip.errors import UserError
from un2clip.files.texts import File, read_lines
from un2clip.hashes import files_below, folder_sha256

CATALOGUE = files("un2clip.sources") / "catalogue.yaml"
NAMED = 3  # so many missing files are named, of all that are missing


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a folder must hold.

    Attributes:
        ids: what {id} stands for: a range `1..270`, a file with one id a line, or a path with {id} in it; "" for none.
        files: paths, perhaps with *, ? and {id}; each must match a file, with {id} for every id.
        fetched: patterns of the files that are wanted from the hub.
    """

    ids: str
    files: tuple[str, ...]
    fetched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set; its fields' meanings are in catalogue.yaml, where most entries are without `also` and `items`."""

    name: str
    kind: Literal["hub", "folder", "login"]
    layout: Layout
    location: str
    revision: str
    also: dict[str, str]
    url: str
    licence: str
    terms: str
    count: int
    samples: int
    items: int
    data_sha256: str
    source: str

    @property
    def page(self) -> str:
        """Where a person reads about it and its terms."""
        return self.url or f"https://huggingface.co/datasets/{self.location}"


@dataclass(frozen=True, kw_only=True)
class _Catalogue:
    """The file: layouts by their name, and entries, which have the name of a layout in its place."""

    layouts: dict[str, dict[str, Any]]
    benchmarks: dict[str, dict[str, Any]]


def catalogue(file: File = CATALOGUE) -> dict[str, Entry]:
    """All entries by name, in the order of the file."""
    content = build(_Catalogue, read_yaml(file), "catalogue")

    def entry(name: str, fields: dict[str, Any]) -> Entry:
        layout = lookup(content.layouts, str(fields.get("layout")), "layout")
        return build(Entry, {"also": {}, "items": 0} | fields | {"name": name, "layout": layout}, name)

    return {name: entry(name, fields) for name, fields in content.benchmarks.items()}


def get_entry(name: str) -> Entry:
    """The entry called `name`; a UserError lists those there are."""
    return lookup(catalogue(), name, "data set")


def published_items(benchmark: str) -> int:
    """How many right or wrong items a benchmark's published set has; 0 where that is not known beforehand."""
    entry = catalogue().get(benchmark)
    return (entry.items or entry.samples) if entry and "segmentation" not in benchmark else 0


def table() -> str:
    """The catalogue in Markdown, as it stands in data/README.md."""
    rows = ["| name | got by | licence | terms | from |", "|---|---|---|---|---|"]
    for entry in catalogue().values():
        got = {"hub": "`fetch`", "folder": "`fetch --from`", "login": "`fetch --from`, after a login"}[entry.kind]
        where = re.sub(r"^https?://(www\.)?|/$", "", entry.page)
        rows.append(f"| {entry.name} | {got} | {entry.licence} | {entry.terms} | [{where}]({entry.page}) |")
    return "\n".join(rows) + "\n"


def describe(entry: Entry) -> str:
    """Licence, terms and layout, for a person to read before anything is fetched."""
    layout = entry.layout
    each = f" for each id of {layout.ids}" if layout.ids else ""
    counts = [f"{entry.count} ids"] * bool(entry.count) + [f"{entry.samples} samples in tars"] * bool(entry.samples)
    lines = [
        f"{entry.name}, from {entry.page}",
        f"  licence  {entry.licence}",
        f"  terms    {entry.terms}",
        f"  layout   {', '.join(layout.files)}{each}",
    ]
    return "\n".join([*lines, f"  counts   {', '.join(counts)}"] if counts else lines)


def about_revision(entry: Entry, commit: str) -> str:
    """What is known of a commit of the hub: the catalogue's own, another one that is known, or none of them."""
    if commit == entry.revision:
        return f"commit {commit[:12]} is the catalogue's"
    for known, note in entry.also.items():
        if commit.startswith(known):
            return f"commit {commit[:12]} is not the catalogue's {entry.revision[:12]}: {note}"
    return f"commit {commit[:12]} is not known to us" + (f"; {entry.revision[:12]} is" if entry.revision else "")


def check(entry: Entry, folder: Path) -> str:
    """Compare a folder with the entry's layout and counts; say in words what was found.

    Raises:
        UserError: files are missing (how many, and the first few), or a count or the hash of the data is another one.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; {entry.name} is to be had at {entry.page}")
    ids = _ids(entry.layout.ids, folder)
    if entry.count and len(ids) != entry.count:
        raise UserError(f"{folder} is not all of {entry.name}: {len(ids)} ids of {entry.layout.ids}, not {entry.count}")
    wanted = [path for pattern in entry.layout.files for path in _each(pattern, ids)]
    missing = [path for path in tqdm(wanted, desc="check", unit="file", mininterval=1) if not _exists(folder, path)]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"{folder} is not all of {entry.name}: {len(missing)} of {len(wanted)} files are missing: "
            f"{', '.join(missing[:NAMED])}{more}"
        )
    found = f"{len(wanted)} files"
    if entry.samples:
        samples = _samples(sorted(folder.glob("test/[!.]*.tar")))
        if samples != entry.samples:
            raise UserError(
                f"{folder} is not all of {entry.name}: {samples} samples in test/*.tar, not {entry.samples}"
            )
        found += f", {samples} samples"
    sha256 = folder_sha256(folder)
    if entry.data_sha256 not in ("", sha256):
        raise UserError(
            f"{folder} is not {entry.name}: its files hash to {sha256[:12]}, not {entry.data_sha256[:12]}; get it again"
        )
    return f"{folder} has the layout of {entry.name}: {found}\ndata_sha256 {sha256}"


def _ids(ids: str, folder: Path) -> list[str]:
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", ids):
        return [str(i) for i in range(int(bounds[1]), int(bounds[2]) + 1)]
    if "{id}" in ids:
        before, after = ids.split("{id}")
        paths = (path.relative_to(folder).as_posix() for path in files_below(folder))
        found = (path for path in paths if path.startswith(before) and path.endswith(after))
        return sorted(path[len(before) : -len(after)] for path in found)
    if not ids:
        return []
    if not (folder / ids).is_file():
        raise UserError(f"{folder} has no {ids}, the list of its images")
    return " ".join(read_lines(folder / ids)).split()


def _each(pattern: str, ids: list[str]) -> Iterator[str]:
    if "{id}" not in pattern:
        yield pattern
    else:
        yield from (pattern.replace("{id}", name) for name in ids)


def _exists(folder: Path, path: str) -> bool:
    if re.search(r"[*?]", path):
        return any(each.is_file() for each in folder.glob(path))
    return os.path.isfile(folder / path)


def _samples(tars: list[Path]) -> int:
    """Number of samples, as every reader here groups members; their contents are not read."""
    count = 0
    for path in tqdm(tars, desc="count", unit="tar", mininterval=1):
        try:
            count += sum(1 for _ in groups(path, max_bytes=0))
        except DamagedTar as error:
            raise UserError(f"{path} is not a whole tar: {error}") from None
    return count
