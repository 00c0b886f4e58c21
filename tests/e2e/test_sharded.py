"""An assistant trained in two processes of which each holds half: same weights as of one, stopped and started again."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from tests.conversing import CLIP, write_instructions
from tests.e2e.test_assistant import assert_close, train
from un2clip import tracking
from un2clip.errors import Stopped
from un2clip.hashes import file_sha256
from un2clip.training import distributed, loop
from un2clip.training.shards import Shards

SHARDED = {"compute": {"shard": True, "max_per_device": 3, "checkpoint_every": 1, "gradient_checkpointing": True}}

LOW_RANK = {"phases": {"instruction": {"lora": {"language": {"rank": 2, "alpha": 4.0}}}}}


def in_two(data: Path) -> None:
    """What each of two processes does: trained through; stopped in each phase and started again; low-rank updates."""
    held: list[tuple[int, int]] = []

    class Watched(Shards):
        def step(self, step: int) -> None:
            super().step(step)
            values = [*self.trained, *(state["exp_avg"] for state in self.optimizer.state.values())]
            assert all(value.dtype == torch.float32 for value in values)
            assert all(each.numel() == 0 for name, each in self.objective.named_parameters() if name in self.shares)
            held.append((sum(value.to_local().numel() for value in values), sum(value.numel() for value in values)))

    def stop(step: int, values: Any) -> None:
        if step in stops:
            stops.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)

    loop.Shards, tracking.log_metrics, stops = Watched, stop, list[int]()
    with distributed.group(torch.device("cpu")):
        distributed.group = lambda device: nullcontext()
        train(data, data / "through", **SHARDED)
        dist.barrier()  # behind which the first process has removed the state
        assert held and all(0.4 < own / whole < 0.6 for own, whole in held), held
        stops += [0, 3]
        for _ in range(2):
            with pytest.raises(Stopped):
                train(data, data / "stopped", **SHARDED)
            dist.barrier()  # behind which it has been kept
        assert not stops
        train(data, data / "stopped", **SHARDED)
        train(data, data / "low-rank", **SHARDED, **LOW_RANK)


def test_in_shards_it_is_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UN2CLIP_TRACKING", "off")
    write_instructions(tmp_path / "instructions")
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones/clip").symlink_to(CLIP)
    train(tmp_path, tmp_path / "one")
    distributed.launch(2, in_two, tmp_path)
    assert_close(tmp_path / "one", tmp_path / "through")
    train(tmp_path, tmp_path / "one-low-rank", **LOW_RANK)
    assert_close(tmp_path / "one-low-rank", tmp_path / "low-rank")
    curves = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "through")]
    for column in ("loss", "grad_norm"):
        assert [row[column] for row in curves[1]] == pytest.approx([row[column] for row in curves[0]], rel=1e-4)
    for name in ("model.safetensors", "history.json", "lineage.json"):
        assert file_sha256(tmp_path / "through" / name) == file_sha256(tmp_path / "stopped" / name), name
