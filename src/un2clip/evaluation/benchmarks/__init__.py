"""Benchmarks: one file each. `run(clip, folder, options)` scores any open_clip model, item by item.

A benchmark knows nothing of methods. Adding a file here and its name to params.yaml adds a benchmark.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from un2clip.config import at_least
from un2clip.errors import UserError
from un2clip.evaluation.dense.features import get_dense_method
from un2clip.evaluation.dense.protocols import get_protocol
from un2clip.evidence.scores import Item
from un2clip.models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """How benchmarks `segmentation` and `segmentation-<layout>` are measured.

    Attributes:
        method: dense features, a row of DENSE_METHODS.
        protocol: settings, an entry of dense/protocols.yaml.
        pictures: columns of the grid of pictures.
    """

    method: str
    protocol: str
    pictures: int

    def __post_init__(self) -> None:
        at_least(self, 1, "pictures")
        get_dense_method(self.method)
        get_protocol(self.protocol)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `evaluate` of params.yaml.

    Attributes:
        batch_size: images, or windows of images, at once.
        segmentation: its own numbers.
    """

    batch_size: int
    segmentation: Segmentation

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What one encoder reached: every item, in the order of the data, the unit of their score, and the protocol.

    The protocol is one line on how it was measured, as far as that moves the number and is not in the data's hash.
    """

    unit: str
    protocol: str
    items: tuple[Item, ...]


Run = Callable[[Clip, Path, Options], BenchmarkResult]
Draw = Callable[[Mapping[str, Clip], Path, Options, Path], None]


def get_benchmark(name: str) -> Run:
    """The `run` of the benchmark called `name`: of a file here, or `file-dataset`.

    Raises:
        UserError: there is no such file; lists those there are.
    """
    run: Run = _file(name).run
    return run


def get_drawing(name: str) -> Draw | None:
    """The benchmark's `draw(clips by name, folder, options, png)`, where it has pictures to show."""
    draw: Draw | None = getattr(_file(name), "draw", None)
    return draw


def _file(name: str) -> ModuleType:
    file = name.partition("-")[0]
    known = [module.name for module in iter_modules(__path__)]
    if file not in known:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{file}")
