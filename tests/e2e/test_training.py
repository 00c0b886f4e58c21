"""Trainings that are killed, stopped, damaged, or run in several processes: the real stage, in real processes."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from un2clip import devices, tracking
from un2clip.config import merge
from un2clip.errors import Stopped, UserError
from un2clip.stages import run_stage
from un2clip.training import lock

STEPS = 9
SPAWN = multiprocessing.get_context("forkserver")  # a fork of a process whose autograd has run cannot use it
SPAWN.set_forkserver_preload(["un2clip.stages.finetune"])


def section(tiny, **changes: object) -> dict[str, Any]:
    """Nine steps a phase, a checkpoint at every second one; changes are of `compute` or of every phase."""
    given = tiny.params["finetune"]
    tune = {"steps": STEPS, "lr": {"encoder": 1e-3}, "ema_decay": 0.5}
    compute = {"checkpoint_every": 2, "keep_checkpoints": 2}
    for name, value in changes.items():
        (compute if name in given["compute"] else tune)[name] = value
    return merge(given, {"phases": {"tune": tune, "unilip-1": {"steps": tune["steps"]}}, "compute": compute})


def names(tiny, folder: Path, encoder: str) -> dict[str, Any]:
    words = {"method": "un2clip-anchored", "seed": 3, "device": "cpu", "checkpoints": str(folder / "checkpoints")}
    paths = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents, "encoder": folder / encoder}
    return words | paths


def train(params: dict[str, Any], arguments: dict[str, Any], at: int | None, number: int) -> None:
    """Run the stage; right after step `at` the process gets a signal."""
    os.environ["UN2CLIP_TRACKING"] = "off"

    def watch(step: int, values: object) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    tracking.log_metrics = watch
    try:
        run_stage("finetune", params, **arguments)
    except Stopped as stopped:
        Path(arguments["encoder"]).with_name("said").write_text(str(stopped))
        raise SystemExit(128 + (stopped.signal or 0)) from None


def in_a_process(*arguments: Any) -> int | None:
    process = SPAWN.Process(target=train, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def content(encoder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(encoder)): path.read_bytes() for path in encoder.rglob("*") if path.is_file()}


def trained(tiny, folder: Path, method: str = "un2clip-anchored", **changes: object) -> dict[str, bytes]:
    """What an unbroken training leaves."""
    run_stage("finetune", section(tiny, **changes), **names(tiny, folder, f"unbroken-{method}") | {"method": method})
    assert not list((folder / "checkpoints").glob("*/*")), "what is finished keeps no state"
    return content(folder / f"unbroken-{method}")


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory) -> dict[str, bytes]:
    return trained(tiny, tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("method", ["un2clip-anchored", "un2clip-captions", "projector-random"])
def test_killed_at_three_random_steps_ends_with_the_same_bytes(tiny, tmp_path, request, method: str) -> None:
    """kill -9, three times, then once more without: weights, history and lineage are those of an unbroken run."""
    steps = sorted(random.Random(20261122).sample(range(1, STEPS), 3))
    arguments = names(tiny, tmp_path, "encoder") | {"method": method}
    unbroken = request.getfixturevalue("unbroken") if method == "un2clip-anchored" else trained(tiny, tmp_path, method)
    for at in steps:
        assert in_a_process(section(tiny), arguments, at, signal.SIGKILL) == -signal.SIGKILL
        assert not (tmp_path / "encoder").exists()
    run_stage("finetune", section(tiny), **arguments)
    assert content(tmp_path / "encoder") == unbroken


def test_killed_in_each_of_two_phases_ends_with_the_same_bytes(tiny, tmp_path) -> None:
    """The row genhancer, whose encoder trains by low-rank updates: kill -9 in the first phase, SIGTERM in its last
    step, kill -9 in the second's first step, which has no state of its own yet, SIGTERM later in it; then once more
    without.
    """
    steps, arguments = 5, names(tiny, tmp_path, "encoder") | {"method": "genhancer"}
    unbroken = trained(tiny, tmp_path, "genhancer", steps=steps)
    for at, done in ((steps - 2, None), (steps - 1, steps), (steps, None), (steps + 1, 3)):
        number, code = (signal.SIGTERM, 143) if done else (signal.SIGKILL, -signal.SIGKILL)
        assert in_a_process(section(tiny, steps=steps), arguments, at, number) == code
        assert not (tmp_path / "encoder").exists()
        if done:
            said = (tmp_path / "said").read_text()
            assert said == f"stopped by a signal after {done} of {steps} steps; the same command goes on"
    run_stage("finetune", section(tiny, steps=steps), **arguments)
    assert content(tmp_path / "encoder") == unbroken
    lineage = json.loads(unbroken["lineage.json"])
    assert lineage["steps_done"] == 2 * steps and lineage["encoder_sha256"] != lineage["parents"]["clip"]


def test_a_signal_keeps_the_last_step(tiny, tmp_path, unbroken, capfd) -> None:
    """SIGTERM ends the training after the step it is in, with a sentence; the same command goes on from there."""
    arguments = names(tiny, tmp_path, "encoder")
    assert in_a_process(section(tiny, checkpoint_every=1000), arguments, 2, signal.SIGTERM) == 143
    said = (tmp_path / "said").read_text()
    assert said == "stopped by a signal after 4 of 9 steps; the same command goes on"
    kept = list((tmp_path / "checkpoints").glob("*/step_*"))
    assert [path.name for path in kept] == ["step_00000004"]
    run_stage("finetune", section(tiny), **arguments)
    assert "goes on after step 4 of 9" in capfd.readouterr().out
    assert content(tmp_path / "encoder")["open_clip_model.safetensors"] == unbroken["open_clip_model.safetensors"]


def cut_in_half(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder: Path) -> None:
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def lose_the_description(folder: Path) -> None:
    (folder / "state.json").unlink()


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_bit, lose_the_description])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tiny, tmp_path, unbroken, capfd, damage: Callable[[Path], None]
) -> None:
    """The newest of two is damaged: it is named, the one before is used, and the end is the same."""
    arguments = names(tiny, tmp_path, "encoder")
    in_a_process(section(tiny), arguments, 7, signal.SIGKILL)
    kept = sorted((tmp_path / "checkpoints").glob("*/step_*"))
    assert [path.name for path in kept] == ["step_00000004", "step_00000006"]
    damage(kept[-1])
    run_stage("finetune", section(tiny), **arguments)
    said = capfd.readouterr()
    assert "step_00000006 is damaged" in said.err and "goes on after step 4 of 9" in said.out
    assert content(tmp_path / "encoder") == unbroken


def test_of_two_trainings_on_one_folder_the_second_is_refused(tiny, tmp_path) -> None:
    """While the first takes its steps; killed, it holds nothing, and the second goes on where it was."""
    arguments = names(tiny, tmp_path, "encoder")
    first = SPAWN.Process(target=train, args=(section(tiny), arguments, 3, signal.SIGSTOP))
    first.start()
    while not list((tmp_path / "checkpoints").glob("*/step_*")):
        time.sleep(0.05)
    with pytest.raises(
        UserError, match=rf"another training uses .*: process {first.pid} on .*; wait for it or stop it"
    ):
        run_stage("finetune", section(tiny), **arguments | {"encoder": tmp_path / "other"})
    assert not (tmp_path / "other").exists()
    first.kill()
    first.join()
    began = time.monotonic()
    run_stage("finetune", section(tiny), **arguments)
    assert time.monotonic() - began < lock.STALE_S / 2 and not list((tmp_path / "checkpoints").glob("*"))


def test_a_full_disk_stops_it_and_the_same_command_goes_on(tiny, tmp_path, unbroken, monkeypatch, capfd) -> None:
    """Something else fills the disk after the first checkpoint: that one is kept, and with room the end is the same."""
    disk, arguments = tmp_path / "checkpoints", names(tiny, tmp_path, "encoder")
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", disk]).returncode:
        pytest.skip("a small disk needs root, and the right to mount")

    def fill(step: int, values: object) -> None:
        if step == 2:
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))

    try:
        monkeypatch.setattr(tracking, "log_metrics", fill)
        with pytest.raises(UserError, match=r"checkpoints/.*: no space is left .* wanted.; make room, then the same"):
            run_stage("finetune", section(tiny), **arguments)
        assert not (tmp_path / "encoder").exists()
        assert [path.name for path in disk.glob("*/step_????????")] == ["step_00000002"]
        (disk / "filler").unlink()
        monkeypatch.undo()
        run_stage("finetune", section(tiny), **arguments)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert "goes on after step 2" in capfd.readouterr().out
    assert content(tmp_path / "encoder") == unbroken


def test_other_numbers_do_not_go_on_from_this_state(tiny, tmp_path, capfd) -> None:
    """A state belongs to what decides its result: another rate begins at the beginning."""
    arguments = names(tiny, tmp_path, "encoder")
    in_a_process(section(tiny), arguments, 5, signal.SIGKILL)
    run_stage("finetune", section(tiny, lr={"encoder": 2e-3}), **arguments)
    assert "goes on" not in capfd.readouterr().out
    assert len(json.loads((tmp_path / "encoder/history.json").read_text())) == STEPS


@pytest.mark.parametrize(
    ("method", "phases", "term"), [("un2clip-anchored", 1, "diffusion_loss"), ("unilip", 2, "pixel_loss")]
)
def test_two_processes_train_as_one(tiny, tmp_path, request, method: str, phases: int, term: str) -> None:
    """DistributedDataParallel over gloo: the same global batch, the same losses, whatever is accumulated."""
    arguments = names(tiny, tmp_path, "encoder") | {"method": method}
    unbroken = request.getfixturevalue("unbroken") if method == "un2clip-anchored" else trained(tiny, tmp_path, method)
    run_stage("finetune", section(tiny, processes=2, max_per_device=3), **arguments)
    history = json.loads((tmp_path / "encoder/history.json").read_text())
    alone = json.loads(unbroken["history.json"])
    assert len(history) == len(alone) == phases * STEPS
    for row, other in zip(history, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert [row[term] for row in history] == pytest.approx([row[term] for row in alone], rel=1e-5)


def test_longer_is_the_same_training_with_more_steps(tiny, tmp_path) -> None:
    """Nine steps by the row `un2clip-longer`, whose own they are, are nine of `un2clip`."""
    assert section(tiny)["phases"]["longer"] == {"like": "tune", "steps": STEPS}
    longer = trained(tiny, tmp_path, "un2clip-longer", steps=STEPS // 3)
    plain = trained(tiny, tmp_path, "un2clip")
    for name in ("open_clip_model.safetensors", "history.json"):
        assert longer[name] == plain[name]
    assert json.loads(longer["lineage.json"])["steps_done"] == STEPS


def test_a_mistake_in_one_of_several_processes_is_one_line(tiny, tmp_path) -> None:
    """What a process finds wrong is the stage's own UserError, and the last good weights are kept."""
    params = section(tiny, processes=2, lr={"encoder": 1e30}, warmup_steps=0)
    with pytest.raises(UserError, match=r"^the loss is (nan|inf) at step \d+ .* the last good one, are in"):
        run_stage("finetune", params, **names(tiny, tmp_path, "encoder"))
    assert not json.loads((tmp_path / "encoder/lineage.json").read_text())["complete"]
    assert devices.world_size() == 1
