"""`un2clip plan`: memory against hand counts, times against runs that were measured, and the words."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from un2clip.__main__ import main
from un2clip.config import build, read_params
from un2clip.errors import GIB, UserError
from un2clip.methods.flops import META
from un2clip.methods.table import get_method
from un2clip.planning.machines import get_device
from un2clip.planning.memory import Living, fused_attention, measure_step
from un2clip.planning.plan import Plan, describe
from un2clip.planning.published import new_reconstruction
from un2clip.stages.backbones import Backbones
from un2clip.stages.finetune_job import Finetune

ROOT = Path(__file__).parents[2]
FULL = [ROOT / f"configs/{name}.yaml" for name in ("paper", "openai-vit-l-14")]


def test_living_storages_by_hand() -> None:
    """Two results of 400 bytes, one of which goes; a view and a result written in place cost nothing."""
    x = torch.empty(100, device=META)
    with Living() as living:
        y = x * 2
        z = y + 1
        assert living.bytes == living.peak == 800
        del y
        assert (living.bytes, living.peak) == (400, 800)
        z.view(10, 10).add_(1)
        assert (living.bytes, living.peak) == (400, 800)


def test_checkpoints_keep_less_by_hand() -> None:
    """Of two tanh in a row the first's result is kept for the way back; a checkpoint makes it again."""
    x = torch.empty(10, 50, device=META, requires_grad=True)

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x.tanh().tanh()

    with Living() as plain:
        y = twice(x)
        assert plain.bytes == 2 * 2000
        y.sum().backward()
    with Living() as checkpointed:
        y = checkpoint(twice, x, use_reentrant=False)
        assert checkpointed.bytes == 2000
        y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_fused_attention_keeps_no_scores() -> None:
    """Result and a number a row instead of two matrices of 64 x 64; the shapes of the gradients are the inputs'."""
    q = torch.empty(1, 2, 64, 8, device=META, requires_grad=True)
    attend = "scaled_dot_product_attention"
    with fused_attention(), Living() as living:
        y = getattr(nn.functional, attend)(q, q, q)
        assert y.shape == q.shape and living.bytes == 4 * (2 * 64 * 8 + 2 * 64)
        y.sum().backward()
        assert q.grad is not None and q.grad.shape == q.shape
    assert getattr(nn.functional, attend)(q, q, q).shape == q.shape
    with Living() as naive:
        getattr(nn.functional, attend)(q, q, q)
    assert naive.peak > 4 * 2 * 64 * 64


def test_a_full_size_step_against_the_measured_one() -> None:
    """docs/LOG.md, a step at full width on a CPU, U-Net checkpointed, batch 1: 10.3 GiB, within a factor of 1.5."""
    params = read_params(ROOT / "params.yaml", FULL)
    backbones, finetune = build(Backbones, params["backbones"], "backbones"), build(Finetune, params["finetune"], "f")
    row = get_method("un2clip")
    with META:
        objective, size = new_reconstruction(backbones, finetune, row)
    compute = dataclasses.replace(finetune.compute, gradient_checkpointing=True)
    memory = measure_step(objective, ("encoder",), size, finetune.phases_of(row)[0], compute, images=1)
    assert 10.3 / 1.5 < memory.peak / GIB < 10.3 * 1.5


def test_the_laptop_plan_and_its_words(capsys, monkeypatch) -> None:
    """The command prints operations, hours, memory, disk and what limits; a price makes a cost."""
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--gpu", "l4", "--price", "2"]) == 0
    said = capsys.readouterr().out
    for word in ("| noised | decoder |", "| latents | 1 |", "| finetune (noised) | 1 |", "cost: ", "disk: shards"):
        assert f"\n{word}" in said, said
    assert said.splitlines()[-1].startswith("limited by: ")
    assert main(["plan", "--gpu", "h900"]) == 2
    assert "unknown GPU of machines.yaml 'h900'; known: h100" in capsys.readouterr().err
    assert main(["plan", "--overlay", "configs/from-nothing.yaml"]) == 2
    assert "nothing says the architecture of backbones.encoder.weights (toy)" in capsys.readouterr().err


def test_hours_are_operations_over_the_rate() -> None:
    """By hand: 64 images x 1,000 steps; two GPUs take half the time, another precision goes at its own rate."""
    plan, l4 = Plan(read_params(ROOT / "params.yaml")), get_device("l4")
    (phase,) = plan.phases
    per_image = sum(part.total for name, part in phase.flops.items() if name != "target")
    one, two = ({name: hours for name, hours, *_ in plan.stages(l4, gpus)} for gpus in (1, 2))
    tune = "finetune (noised)"
    assert phase.cached and one[tune] == pytest.approx(64_000 * per_image / 30.3e12 / 3600)
    for stage in (tune, "latents"):
        assert two[stage] == pytest.approx(one[stage] / 2)
    assert two["diffusion_loss"] == one["diffusion_loss"]
    assert one["latents"] == pytest.approx(64_000 * phase.flops["target"].total / 30.3e12 / 3600)
    assert phase.seconds(l4, "bf16", "fp32") == pytest.approx(per_image / 121e12)
    shape = plan.latent_shape
    assert shape is not None and plan.disk()["latents"] == 64_000 * 4 * shape[0] * shape[1] * shape[2]
    with pytest.raises(UserError, match=r"finetune.batch_size \(64\) must be a multiple of the GPUs, got 3"):
        describe(plan, l4, 3, None)


def test_every_device_says_where_it_is_from() -> None:
    for name in ("h100", "h200", "a100-40", "a100-80", "l40s", "l4"):
        device = get_device(name)
        assert device.source and device.bf16 > device.fp32 > 0 and device.memory_gb > 0
