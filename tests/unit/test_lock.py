"""One training at a time on a checkpoints folder."""

import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from un2clip import processes
from un2clip.errors import Stopped, UserError
from un2clip.training import lock
from un2clip.training.lock import locked

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the real times."""
    assert (lock.RENEWED_S, lock.STALE_S) == (10, 60), "what docs/training.md says"
    monkeypatch.setattr(lock, "RENEWED_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 0.6)
    monkeypatch.setattr(lock, "LOOK_S", 0.02)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def write(folder: Path, holder: processes.Process | str) -> Path:
    path = folder.with_name(f"{folder.name}.lock")
    path.write_text(json.dumps({"process": str(holder), "began": "then"}))
    return path


def running(child: subprocess.Popen[bytes], **changes: str) -> processes.Process:
    return dataclasses.replace(processes.here(), pid=child.pid, start=processes._start(child.pid), **changes)


def test_it_is_held_and_given_back(tmp_path: Path) -> None:
    """While one holds it another is refused in words; it is renewed; afterwards nothing is left."""
    with locked(tmp_path / "sub/state") as held:
        first = held.path.stat().st_mtime_ns
        with pytest.raises(UserError, match=rf"another training uses .*state: process {os.getpid()} on .*, since 20"):
            with locked(tmp_path / "sub/state"):
                pytest.fail("two hold it")
        time.sleep(0.5)
        assert held.path.stat().st_mtime_ns > first
        held.check()
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_process_that_lives_here_keeps_it_and_a_dead_one_does_not(tmp_path: Path, other) -> None:
    """At once, in both cases: without waiting for a minute of silence."""
    write(tmp_path / "state", running(other))
    with pytest.raises(UserError, match=f"process {other.pid} on"), locked(tmp_path / "state"):
        pytest.fail("two hold it")
    other.kill()
    other.wait()
    began = time.monotonic()
    with locked(tmp_path / "state") as held:
        assert time.monotonic() - began < lock.STALE_S / 2
        held.check()


@pytest.mark.parametrize("place", ["host", "boot", "namespace"])
def test_one_elsewhere_is_watched(tmp_path: Path, other, capsys, place: str) -> None:
    """Silent, it loses the lock when that is stale; renewed meanwhile, it keeps it."""
    path = write(tmp_path / "state", running(other, **{place: "elsewhere"}))
    began = time.monotonic()
    with locked(tmp_path / "state"):
        assert time.monotonic() - began >= lock.STALE_S * 0.9
    assert re.search(r"watched for up to .*\n.* is gone; its lock .* is taken over", capsys.readouterr().err)
    path = write(tmp_path / "state", running(other, **{place: "elsewhere"}))
    renewing = Thread(target=lambda: (time.sleep(0.2), os.utime(path)))
    renewing.start()
    with pytest.raises(UserError, match="another training uses"), locked(tmp_path / "state"):
        pytest.fail("two hold it")
    renewing.join()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "nobody"}', "\0\xff"])
def test_a_broken_lock_is_stale_after_a_while(tmp_path: Path, content: str) -> None:
    """A disk that failed in between; who holds it is not known, so it is watched."""
    (tmp_path / "state.lock").write_bytes(content.encode("latin-1"))
    with locked(tmp_path / "state") as held:
        held.check()


def test_one_that_stood_still_notices(tmp_path: Path, other) -> None:
    """Another has taken it over: whoever held it writes no more, and does not give back what is the other's."""
    with (
        pytest.raises(Stopped, match="another training has taken over .*state") as stopped,
        locked(tmp_path / "state") as held,
    ):
        write(tmp_path / "state", running(other))
        held.check()
    assert stopped.value.signal is None and (tmp_path / "state.lock").is_file()


def hold(folder: Path, log: str) -> None:
    try:
        with locked(folder), open(log, "a") as file:
            file.write("in ")
            file.flush()
            time.sleep(0.1)
            file.write("out ")
    except UserError:
        pass


def test_of_many_one_holds_it(tmp_path: Path, other) -> None:
    """Five processes at once, over a lock whose holder is dead: never two within."""
    dead = running(other)
    other.kill()
    other.wait()
    for _ in range(2):
        write(tmp_path / "state", dead)
        crowd = [FORK.Process(target=hold, args=(tmp_path / "state", str(tmp_path / "log"))) for _ in range(5)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
            assert each.exitcode == 0
    words = (tmp_path / "log").read_text().split()
    assert len(words) >= 4 and words == ["in", "out"] * (len(words) // 2)
