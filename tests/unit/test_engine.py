"""Tasks over several processes: each once, a dead worker's again, and no worker outlives the one who began it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks import die, die_once, refuse, tell, write
from tests.unit.test_latents import bytes_below, encode
from un2clip.config import build
from un2clip.datasets.engine import run_tasks
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate
from un2clip.stages.diffusion_loss import DiffusionLoss, diffusion_loss
from un2clip.stages.evaluate import evaluate


def test_latents_are_the_same_bytes_from_two_processes(tiny, tmp_path) -> None:
    """Files and latents.json, made anew but for one file, which is kept.

    The first of this file, so that the workers of all are forked from a process that has imported the stage.
    """
    made = shutil.copytree(tiny.latents, tmp_path / "l")
    kept, *others = sorted(made.rglob("*.safetensors"))
    for path in others:
        path.unlink()
    stamp = kept.stat().st_mtime_ns
    encode(tiny, made, processes=2)
    assert kept.stat().st_mtime_ns == stamp and len(others) > 1
    assert bytes_below(made) == bytes_below(tiny.latents)


def test_the_diffusion_loss_is_the_same_from_two_processes(tiny, tmp_path) -> None:
    """Items to the last bit, of five batches that two processes share."""
    for processes in (1, 2):
        changed = {"images": 9, "batch_size": 2, "processes": processes}
        section = build(DiffusionLoss, tiny.params["diffusion_loss"] | changed, "diffusion_loss")
        diffusion_loss(
            section, seed=3, device="cpu", shards=tiny.shards, backbones=tiny.backbones, latents=tiny.latents,
            encoder=tiny.backbones / "clip", scores=tmp_path / str(processes),
        )  # fmt: skip
    for role in ("reference", "tuned"):
        assert (tmp_path / "2" / f"{role}.json").read_bytes() == (tmp_path / "1" / f"{role}.json").read_bytes()


@pytest.mark.parametrize("benchmark", ["zeroshot", "mmvp_vlm"])
def test_an_evaluation_is_the_same_from_two_processes(tiny, tmp_path, benchmark) -> None:
    """Scores to the last bit, of batches that two processes share; nothing is left of them."""
    for processes in (1, 2):
        changed = {"batch_size": 10, "processes": processes}
        evaluate(
            build(Evaluate, tiny.params["evaluate"] | changed, "evaluate"), benchmark=benchmark, device="cpu",
            checkpoints="", benchmarks=tiny.benchmarks, backbones=tiny.backbones, encoder=tiny.backbones / "clip",
            scores=tmp_path / str(processes),
        )  # fmt: skip
    assert bytes_below(tmp_path / "1") == bytes_below(tmp_path / "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_each_task_is_done_once_by_a_worker(tmp_path) -> None:
    tasks = [tmp_path / name for name in "abcd"]
    assert sorted(run_tasks(write, tasks, 2)) == tasks
    said = [path.read_text().split() for path in tasks]
    assert {processes for _, processes, _ in said} == {"2"}
    assert {threads for *_, threads in said} == {str(torch.get_num_threads())}
    assert str(os.getpid()) not in {pid for pid, *_ in said}
    assert list(run_tasks(write, tasks, 1)) == tasks
    assert {path.read_text().split()[0] for path in tasks} == {str(os.getpid())}


def test_workers_have_the_variables_of_their_call(tmp_path, monkeypatch) -> None:
    """Not those with which the first pool was begun: keys of a store may be set, and taken away, in between."""
    for value in ("first", "second", ""):
        monkeypatch.setenv("UN2CLIP_TOLD", value) if value else monkeypatch.delenv("UN2CLIP_TOLD")
        tasks = [tmp_path / value / name for name in "ab"]
        tasks[0].parent.mkdir(exist_ok=True)
        list(run_tasks(tell, tasks, 2))
        assert [path.read_text() for path in tasks] == [value or "nothing"] * 2


def test_the_task_of_a_worker_that_died_is_done_again_and_said(tmp_path, capsys) -> None:
    tasks = [tmp_path / name for name in "abc"]
    assert sorted(run_tasks(die_once, tasks, 2)) == tasks
    assert all(path.read_text() == "done" for path in tasks)
    said = capsys.readouterr().err
    assert "un2clip: a worker died; done again: " in said and str(tmp_path / "b") in said


def test_a_task_that_kills_every_worker_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="a worker died 3 times while it had .*/[ab]; look at memory"):
        list(run_tasks(die, [tmp_path / "a", tmp_path / "b"], 2))


def test_an_error_of_a_task_is_its_own(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^[ab] cannot be read$"):
        list(run_tasks(refuse, [tmp_path / "a", tmp_path / "b"], 2))


def test_workers_leave_nothing_behind(tmp_path) -> None:
    """Python's tracker of semaphores has none to complain of when all is done."""
    with started(tmp_path, "draw_bar", stderr=subprocess.PIPE, text=True) as process:
        said = process.communicate(timeout=120)[1]
    assert (process.returncode, said) == (0, "")


def test_workers_end_with_the_process_that_began_them(tmp_path) -> None:
    """kill -9 of it: no worker is left to write beside the next run."""
    with started(tmp_path, "wait_long") as process:
        until = time.monotonic() + 120
        while not all((tmp_path / name).exists() for name in "ab") and time.monotonic() < until:
            time.sleep(0.1)
        process.kill()
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and _runs(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in workers)


def started(folder: Path, task: str, **pipes: Any) -> "subprocess.Popen[str]":
    """A process that has two workers do a task of tests/tasks.py for folder/a and folder/b."""
    script = (
        f"from pathlib import Path\nfrom tests.tasks import {task}\n"
        "from un2clip.datasets.engine import run_tasks\n"
        f"if __name__ == '__main__':\n    list(run_tasks({task}, [Path({str(folder)!r}) / n for n in 'ab'], 2))\n"
    )
    (folder / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, folder / "script.py"], env=environment, **pipes)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
