"""Workers that read images: shared memory that is too small for their batches, and workers that give nothing."""

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from un2clip.datasets import handing, loader
from un2clip.errors import UserError

SKIPPED = 77  # status of a process that could not try
SAMPLE = 4 * 3 * 16 * 16  # bytes


class Reading:
    """A reader of one picture of 3 KiB, however often; `act` is what a worker meets besides."""

    def __init__(self, act: Any = None) -> None:
        self.act = act

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.act and torch.utils.data.get_worker_info():
            self.act()
        return {
            "keys": [str(index)],
            "pixel_values": torch.zeros(1, 3, 16, 16),
            "valid": torch.ones(1, dtype=torch.bool),
        }


def batches(size: int) -> Any:
    return iter([list(range(size))] * 3)


def with_room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(handing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 1), (2, 4)])
def test_what_is_wanted_is_what_the_workers_hold(monkeypatch, workers: int, processes: int) -> None:
    """Two batches ready in each worker and one in use, in every process: one byte less is refused, in both numbers."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    wanted = processes * (2 * workers + 1) * 8 * (SAMPLE + 1)
    with_room(monkeypatch, wanted)
    assert list(handing.check_shared_memory(Reading(), batches(8), workers)) == list(batches(8))
    with_room(monkeypatch, wanted - 1)
    with pytest.raises(UserError, match=rf"/dev/shm has 0.000 GiB free, {workers} workers .* or set `workers`"):
        handing.check_shared_memory(Reading(), batches(8), workers)


def test_no_batches_want_nothing(monkeypatch) -> None:
    with_room(monkeypatch, 0)
    assert list(handing.check_shared_memory(Reading(), iter(()), 2)) == []


def test_a_small_shared_memory_is_one_line(tmp_path: Path) -> None:
    """64 KiB, really mounted, in a process that has its own mounts: torch itself would wait for ever."""
    if os.getuid():
        pytest.skip("another /dev/shm needs root")
    if not (child := os.fork()):
        status = SKIPPED
        try:
            status = _read_with_64_kib(tmp_path / "said")
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == SKIPPED:
        pytest.skip("no mounts of its own here")
    said = (tmp_path / "said").read_text()
    assert status == 0 and said.startswith("/dev/shm has 0.000 GiB free, 2 workers a process and batches of 64 images")


def _read_with_64_kib(said: Path) -> int:
    if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
        return SKIPPED
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o size=64k none /dev/shm"):
        if subprocess.run(command.split()).returncode:
            return SKIPPED
    try:
        list(loader.read(Reading(), batches(64), 2))  # type: ignore[arg-type]
    except UserError as error:
        said.write_text(str(error))
        return 0
    return 1


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: time.sleep(2.5), "timed out after 1 seconds"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "(killed by signal: Killed|exited)"),
    ],
)
def test_workers_that_give_nothing_are_one_line(monkeypatch, act, said: str) -> None:
    """One hangs, one is killed as for memory: the loop does not wait for ever."""
    monkeypatch.setattr(loader, "ANSWER_S", 1)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"^DataLoader .*{said}.*set `workers` of this stage to 0"):
        list(itertools.islice(loader.read(Reading(act), batches(2), 1), 1))  # type: ignore[arg-type]
    assert time.monotonic() - began < 20
