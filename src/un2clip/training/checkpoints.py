"""The state of a training that is not finished, so that one that was killed ends with the bytes of an unbroken one.

A checkpoint is a folder step_00000100 with state.safetensors (weights that train, their averages, the optimiser's
moments, the random state) and state.json (history, the hashes of both). It is written beside and renamed, so a
folder of that name is whole unless the disk failed, and then its hash says so.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from un2clip.config import record
from un2clip.errors import disks_in_words
from un2clip.files.outputs import save_tensors
from un2clip.files.texts import read_json
from un2clip.hashes import file_sha256
from un2clip.training.lock import Lock
from un2clip.training.progress import Record

TENSORS, CONTENT = "state.safetensors", "state.json"
OWN = "content_sha256"  # key of state.json: hash of all else in it


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One checkpoint: after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    history: list[Record]
    tags: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Content:
    """state.json."""

    step: int
    sha256: str
    history: tuple[dict[str, Any], ...]
    tags: dict[str, str | None]

    def __post_init__(self) -> None:
        if not all(type(value) in (int, float) for row in self.history for value in row.values()):
            raise ValueError("history must be of numbers")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where one training keeps its state.

    Attributes:
        folder: of this very training: its name should hold all that decides the result.
        every: steps between two checkpoints.
        keep: newest checkpoints that are kept.
        final: whether the last step is kept too, for the phases that follow.
        tags: what else to remember, such as the run in MLflow.
        lock: of the folder, looked at before anything is written.
    """

    folder: Path
    every: int
    keep: int
    final: bool
    tags: dict[str, Any]
    lock: Lock | None = None

    def due(self, step: int, steps: int, stop: bool) -> bool:
        """Whether the state after so many of the phase's steps is kept."""
        return stop or step % self.every == 0 or (self.final and step == steps)

    def save(self, step: int, tensors: dict[str, Tensor], history: Sequence[Record]) -> None:
        """Write a checkpoint, then drop the oldest ones.

        Raises:
            DiskRefused: the disk is full, or cannot be written; the one before is still there.
            Stopped: another training has taken the folder over.
        """
        if self.lock is not None:
            self.lock.check()
        wanted = sum(value.numel() * value.element_size() for value in tensors.values())
        with disks_in_words([self.folder], wanted):
            self._write(step, tensors, history)
        for old in self._found()[self.keep :]:
            shutil.rmtree(old)

    def _write(self, step: int, tensors: dict[str, Tensor], history: Sequence[Record]) -> None:
        final = self.folder / f"step_{step:08d}"
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_tensors(tensors, partial / TENSORS)
        content = {"step": step, "sha256": file_sha256(partial / TENSORS), "history": list(history), "tags": self.tags}
        (partial / CONTENT).write_text(json.dumps(content | {OWN: _sha256(content)}) + "\n")
        for path in (partial / TENSORS, partial / CONTENT):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole, on the CPU; warns if it skips a damaged one."""
        for folder in self._found():
            try:
                found = read_json(folder / CONTENT, nan=True)
                own = found.pop(OWN, None)  # older ones have none
                if own is not None and own != _sha256(found):
                    raise ValueError(f"{CONTENT} is not what was written")
                content = record(_Content, found, CONTENT)
                if file_sha256(folder / TENSORS) != content.sha256:
                    raise ValueError(f"{TENSORS} is not what was written")
                tensors, history = load_file(folder / TENSORS), list(content.history)
                return Saved(step=content.step, tensors=tensors, history=history, tags=content.tags)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                print(f"un2clip: {folder} is damaged ({error}); trying the one before", file=sys.stderr)
        return None

    def _found(self) -> list[Path]:
        """The checkpoints' folders, the newest first."""
        return sorted(self.folder.glob("step_????????"), reverse=True)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Interruption:
    """While it is open, SIGTERM and the first Ctrl-C only ask the loop to stop; a second one acts as usual."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.wanted = False
        self.number: int = signal.SIGTERM
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted, self.number = True, number
        signal.signal(number, self._before[number])
