"""The batches of a benchmark are measured apart: so processes share them, and what was cut off goes on.

A benchmark calls a `Spread` for each of its loops. What a batch gives is kept in a file of its own, so a later call of
the whole benchmark (in another process, or after a kill) takes it from there. A batch is the same whoever measures it;
so are its bytes, with any number of processes.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from un2clip.datasets import loader
from un2clip.errors import disks_in_words
from un2clip.files.outputs import write_json
from un2clip.files.texts import read_json

Batch = TypeVar("Batch")
Found = TypeVar("Found")
#: Makes of a batch what the function takes: lists and tensors by name.
Read = Callable[[Batch], dict[str, Any]]
WHOLE = "whole.json"  # in a loop's folder: how many batches it has, once all are measured


class Spread(Protocol):
    """Reads each batch and calls a function on it: (what is done, for the bar; batches; read; function) -> what each
    gave, in order.

    Batches are the same, in the same order, in each call; listing one should cost little, since each process that
    shares them lists all. `read` decodes, and touches no model, so that other processes may do it ahead. What the
    function gives consists of tuples, lists, dicts with texts as keys, texts, numbers and tensors on the CPU.
    """

    def __call__(
        self, name: str, batches: Iterable[Batch], read: Read[Batch], function: Callable[[dict[str, Any]], Found], /
    ) -> Iterator[Found]: ...


def alone(
    name: str, batches: Iterable[Batch], read: Read[Batch], function: Callable[[dict[str, Any]], Found], /
) -> Iterator[Found]:
    """The Spread of one process that keeps nothing."""
    for batch in tqdm(batches, unit="batch", desc=name, mininterval=1):
        yield function(read(batch))


class Unmeasured(Exception):
    """A loop's batches are still to be measured; `args[0]` is its folder."""


class ShareMeasured(Exception):
    """This process has measured its share of a loop."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The Spread of one call of a benchmark that keeps what each batch gave.

    Attributes:
        folder: of what is kept of this benchmark of this model; a folder a loop, called by its place among them.
        share, of: the first loop that is not whole is measured here: every `of`-th batch, from `share`. Where this is a
            part, ShareMeasured is raised at its end. of 0: nothing is measured here, and Unmeasured is raised instead.
        workers: processes that read ahead, beside this one; 0: this one reads.
    """

    folder: Path
    share: int = 0
    of: int = 1
    workers: int = 0
    _loops: Iterator[int] = field(default_factory=count, repr=False)

    def __call__(
        self, name: str, batches: Iterable[Batch], read: Read[Batch], function: Callable[[dict[str, Any]], Found], /
    ) -> Iterator[Found]:
        loop = self.folder / f"{next(self._loops)}"
        if not (loop / WHOLE).is_file():
            if not self.of:
                raise Unmeasured(loop)
            number = self._measure(loop, name, batches, read, function)
            if self.of > 1:
                raise ShareMeasured
            write_json(loop / WHOLE, {"batches": number})
        return (load(loop / f"{number}.pt") for number in range(read_json(loop / WHOLE)["batches"]))

    def _measure(
        self,
        loop: Path,
        name: str,
        batches: Iterable[Batch],
        read: Read[Batch],
        function: Callable[[dict[str, Any]], Found],
    ) -> int:
        """Measure those of this share that are not there; returns how many batches the loop has."""
        loop.mkdir(parents=True, exist_ok=True)
        said = f"{name}, 1 of {self.of} processes" if self.of > 1 else name
        total, waiting = 0, deque[Path]()

        def is_missing(number: int) -> bool:
            return number % self.of == self.share and not (loop / f"{number}.pt").is_file()

        def missing() -> Iterator[Batch]:
            nonlocal total
            for number, batch in enumerate(batches):
                total = number + 1
                if is_missing(number):
                    waiting.append(loop / f"{number}.pt")
                    yield batch

        left = sum(map(is_missing, range(len(batches)))) if isinstance(batches, Sized) else None
        hidden = self.share > 0  # one is enough
        with tqdm(total=left, unit="batch", desc=said, mininterval=1, disable=hidden) as bar:
            for batch in _read_ahead(read, missing(), self.workers):
                save(function(batch), waiting.popleft())
                bar.update()
        return total


def _read_ahead(read: Read[Batch], batches: Iterator[Batch], workers: int) -> Iterator[dict[str, Any]]:
    """What is read of each batch, in order; workers have some ready, and a GPU copies from memory that is pinned."""
    if workers:
        return loader.read(_Reader(read), ([batch] for batch in batches), workers)
    return map(read, batches)


class _Reader(Dataset[dict[str, Any]]):
    """`read` as a data set whose indices are batches."""

    def __init__(self, read: Callable[[Any], dict[str, Any]]) -> None:
        self.read = read

    def __getitem__(self, batch: Any) -> dict[str, Any]:
        return self.read(batch)


def close(loop: Path) -> None:
    """Say that a loop is whole: each share of it was measured."""
    batches = sum(1 for _ in loop.glob("*.pt"))
    assert all((loop / f"{number}.pt").is_file() for number in range(batches)), loop
    write_json(loop / WHOLE, {"batches": batches})


def save(found: Any, path: Path) -> None:
    """Write what a batch gave, whole or not at all.

    Raises:
        DiskRefused: the disk is full; what was measured before is kept.
    """
    content, partial = io.BytesIO(), path.with_suffix(".partial")
    torch.save(found, content)  # of a full disk it would not say so
    with disks_in_words([path.parent], len(content.getbuffer())):
        partial.write_bytes(content.getbuffer())
        partial.replace(path)


def load(path: Path) -> Any:
    """What a batch gave."""
    return torch.load(path, weights_only=True)
