"""Benchmarks: one file each. `run(clip, folder, batch_size)` scores any open_clip model, item by item.

A benchmark knows nothing of methods. Adding a file here and its name to params.yaml adds a benchmark.
"""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules

from un2clip.checkpoint import Clip
from un2clip.config import UserError
from un2clip.scores import Item

Run = Callable[[Clip, Path, int], tuple[Item, ...]]


def get_benchmark(name: str) -> Run:
    """The `run` of the benchmark called `name`, or a UserError that lists those there are."""
    known = [module.name for module in iter_modules(__path__)]
    if name not in known:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    run: Run = importlib.import_module(f"{__name__}.{name}").run
    return run


def data_sha256(folder: Path) -> str:
    """Hash of all files below a folder, names and contents, in order of name: which data a score belongs to."""
    if not folder.is_dir():
        raise UserError(f"no benchmark data at {folder}; the laptop world's is made by `un2clip shapes`")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
