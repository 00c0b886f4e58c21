"""What is worth keeping of a stage's run: its small result files, its curves, its parameters as flat names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from un2clip.evidence import lineage

SUFFIXES = (".png", ".html", ".json")
LARGEST = 20_000_000  # bytes


class Result(NamedTuple):
    """A small file in the folder of an argument, or in the folder `below` that one; its stamp tells versions apart."""

    argument: str
    below: str
    mtime_ns: int
    bytes: int

    @property
    def folder(self) -> str:
        """`argument` or `argument/below`."""
        return str(Path(self.argument, self.below))


def result_files(names: Mapping[str, Any]) -> dict[Path, Result]:
    """The PNG, HTML and JSON files that lie in the folders given to a stage, or one folder below (JSON only).

    Args:
        names: the stage's arguments; what is no path or list of paths is skipped.
    """
    found: dict[Path, Result] = {}
    for argument, value in names.items():
        for folder in value if isinstance(value, list) else [value]:
            if not isinstance(folder, Path):
                continue
            for path in [*folder.glob("*"), *folder.glob("*/*.json")]:
                if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= LARGEST:
                    below = path.parent.name if path.parent != folder else ""
                    found[path] = Result(argument, below, path.stat().st_mtime_ns, path.stat().st_size)
    return dict(sorted(found.items()))


def read_history(path: Path, below: str) -> list[tuple[int, str, float]]:
    """Points (step, name, value) of a history file, a list of {"step": int, name: number, ...}."""
    return [
        (int(row["step"]), f"{below}/{name}" if below else name, float(value))
        for row in lineage.read_history(path)
        for name, value in row.items()
        if name != "step"
    ]
