"""Tasks by Ray core, in local mode with two workers: the same bytes, and a dead worker's task is done again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tasks import die, die_once, refuse, write
from tests.unit.test_ingest import DEFAULTS
from tests.unit.test_ingest_resumes import files_below, fill, run
from tests.unit.test_latents import encode
from un2clip.config import build
from un2clip.datasets import ray_engine
from un2clip.datasets.engine import at_once, run_tasks
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate
from un2clip.stages.diffusion_loss import DiffusionLoss, diffusion_loss
from un2clip.stages.evaluate import evaluate

INSTALLED = "ray is not installed (un2clip[ray])"


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """Ray with two workers, ended after this file."""
    pytest.importorskip("ray", reason=INSTALLED)
    before = signal.getsignal(signal.SIGTERM)
    with ray_engine.connected(2) as ray:
        assert signal.getsignal(signal.SIGTERM) == before, "a stage's own way to end"
        yield ray
    assert not ray.is_initialized()


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^engine is ray, which is not installed: pip install 'un2clip\[ray\]'$"):
        list(run_tasks(write, [tmp_path / "a"], 1, "ray"))


def test_its_command_line_starts() -> None:
    """It did not with click 8.3, and asks for no version below the next."""
    pytest.importorskip("ray", reason=INSTALLED)
    command = Path(sys.executable).with_name("ray")
    assert "version" in subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout


def test_a_cluster_is_filled(ray, monkeypatch) -> None:
    """A task a core, or less where a task has more threads; without an address this machine counts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert at_once(0, "ray", "cpu") == 1 and at_once(0, "ray", None) == os.cpu_count()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert at_once(0, "ray", None) == 2 and at_once(3, "ray", "auto") == 3
    assert at_once(0, "ray", "cpu") == max(1, 2 // torch.get_num_threads())


def test_each_task_is_done_once_with_this_process_threads(ray, tmp_path, monkeypatch) -> None:
    """Also where Ray would have one thread a task, or another folder to begin relative paths at."""
    monkeypatch.chdir(tmp_path)
    tasks = [Path(name) for name in "abcd"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert sorted(run_tasks(write, tasks, 2, "ray")) == tasks
    finally:
        torch.set_num_threads(before)
    said = [path.read_text().split() for path in tasks]
    assert {threads for *_, threads in said} == {"2"} and str(os.getpid()) not in {pid for pid, *_ in said}


def test_the_task_of_a_worker_that_died_is_done_again_and_said(ray, tmp_path, capsys) -> None:
    tasks = [tmp_path / name for name in "abc"]
    assert sorted(run_tasks(die_once, tasks, 2, "ray")) == tasks
    assert all(path.read_text() == "done" for path in tasks)
    assert f"un2clip: a worker died; done again: {tmp_path / 'b'}" in capsys.readouterr().err


def test_errors_of_tasks_are_their_own(ray, tmp_path) -> None:
    with pytest.raises(UserError, match=r"^[ab] cannot be read$"):
        list(run_tasks(refuse, [tmp_path / "a", tmp_path / "b"], 2, "ray"))
    with pytest.raises(UserError, match="a worker died 3 times while it had .*/a; look at memory"):
        list(run_tasks(die, [tmp_path / "a"], 2, "ray"))


def test_ingest_gives_the_same_bytes(ray, tmp_path) -> None:
    fill(tmp_path, 3, 6)
    made = []
    for engine in ("processes", "ray"):
        run(tmp_path, **DEFAULTS | {"heldout_fraction": 0.3, "processes": 2, "engine": engine})
        made.append(files_below(tmp_path / "out"))
    assert made[0] == made[1] and len(made[0]) > 4


def test_stages_that_compute_give_the_same_bytes(ray, tiny, tmp_path) -> None:
    """Latents as the world has them, the diffusion loss and a benchmark beside one process's."""
    encode(tiny, tmp_path / "latents", engine="ray", processes=2)
    assert files_below(tmp_path / "latents") == files_below(tiny.latents)
    paths = {"backbones": tiny.backbones, "encoder": tiny.backbones / "clip"}
    for engine in ("processes", "ray"):
        how, to = {"engine": engine, "processes": 2 if engine == "ray" else 1}, tmp_path / engine
        loss = build(
            DiffusionLoss, tiny.params["diffusion_loss"] | {"images": 9, "batch_size": 2} | how, "diffusion_loss"
        )
        diffusion_loss(
            loss, seed=3, device="cpu", shards=tiny.shards, latents=tiny.latents, scores=to / "loss", **paths
        )  # fmt: skip
        evaluate(
            build(Evaluate, tiny.params["evaluate"] | {"batch_size": 10} | how, "evaluate"), benchmark="mmvp_vlm",
            device="cpu", checkpoints="", benchmarks=tiny.benchmarks, scores=to / "mmvp_vlm", **paths,
        )  # fmt: skip
    made = [{name: each for name, each in files_below(tmp_path / engine).items() if str(name).endswith("json")}
            for engine in ("processes", "ray")]  # fmt: skip
    assert made[0] == made[1] and len(made[0]) >= 4
