"""The loop: what its numbers mean, and what may not change the training."""

import dataclasses
import itertools
import math
import re

import pytest
import torch

from tests.rows import FAST, NOISE, batches, prepare, run
from un2clip.decoders import load_generator
from un2clip.decoders.decoder import Cond
from un2clip.errors import UserError
from un2clip.hashes import tensors_sha256
from un2clip.models.clip import load_clip
from un2clip.training import loop
from un2clip.training.loop import fit
from un2clip.training.shards import Shards


def test_same_seed_same_weights(tiny) -> None:
    """Two runs end with the same bytes."""
    first, second = (run(tiny, "un2clip")[0] for _ in range(2))
    assert tensors_sha256(first.model.state_dict()) == tensors_sha256(second.model.state_dict())


def test_non_finite_loss_names_step_and_samples_and_keeps_the_last_good_weights(tiny) -> None:
    """A NaN in the second batch stops at step 1 with the samples' names; the weights are those after step 0."""
    good, _, _ = run(tiny, "un2clip", steps=1)
    clip, objective, params = prepare(tiny, "un2clip")

    def poisoned(start: int):
        for i, batch in enumerate(batches()):
            yield batch if i == 0 else batch | {"target": batch["target"] * math.nan}

    rng = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match=r"loss is nan at step 1 \(samples sample0, sample1"):
        fit(objective, ("encoder",), params.phases["tune"], params.compute, poisoned, rng, [])
    assert tensors_sha256(clip.model.state_dict()) == tensors_sha256(good.model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": (0, 1000)}, "timesteps must lie within 0 and 999, got 0 to 1000"),
        ({"timesteps": (9, 3)}, "timesteps must be a lowest of at least 0 and a highest not below it, got 9 and 3"),
        ({"noise_level": (1000, 1000)}, "noise_level must lie within 0 and 999, got 1000 to 1000"),
    ],
)
def test_settings_outside_the_generators_range(tiny, changes: dict[str, object], message: str) -> None:
    """What the generator can't do is refused before the first step."""
    with pytest.raises(ValueError, match=message):
        load_generator(tiny.backbones / "unclip").check(dataclasses.replace(NOISE, **changes))


def test_a_trained_generator_listens(tiny) -> None:
    """After `align` on two kinds of pictures, the loss with the other kind's embedding is larger than with the own."""
    clip, objective, params = prepare(tiny, "align", max_per_device=16)
    kinds = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None, None]
    pixel_values, latents = kinds.expand(-1, 3, 32, 32), kinds.expand(-1, 4, 8, 8)
    batch = {"keys": ["k"] * 16, "pixel_values": pixel_values, "target": latents, "valid": torch.ones(16) > 0}
    phase = dataclasses.replace(params.phases["align"], steps=60, lr={"decoder": 1e-2}, noise=NOISE)
    rng = torch.Generator().manual_seed(0)
    fit(objective, ("decoder",), phase, params.compute, lambda _: itertools.repeat(batch), rng, [])
    sampled = objective.decoder.draw(16, rng, dataclasses.replace(NOISE, timesteps=(600, 999)))
    with torch.no_grad():
        embeds = clip.model.encode_image(pixel_values)
        matched, shuffled = (
            objective.decoder.loss(latents, Cond(vector=vector), sampled)["diffusion_loss"].mean()
            for vector in (embeds, embeds.roll(1, 0))
        )
    assert shuffled > 1.5 * matched


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module, atol: float = 1e-6) -> None:
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("max_per_device", [1, 3, 7])
def test_accumulation_changes_nothing(tiny, max_per_device: int) -> None:
    """A batch in parts of any size gives the records and the weights of the batch at once."""
    whole, _, history = run(tiny, "update-generator", **FAST)
    parts, _, again = run(
        tiny, "update-generator", compute={"max_per_device": max_per_device, "refer_every": 1}, **FAST
    )
    for row, other in zip(again, history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert_same_weights(whole.model.visual, parts.model.visual, atol=1e-5)


@pytest.mark.parametrize("how", ["gradient_checkpointing", "channels_last"])
def test_lighter_or_faster_is_the_same_training(tiny, how: str) -> None:
    """What only saves memory or time gives the same losses."""
    _, _, history = run(tiny, "un2clip-anchored", **FAST)
    _, _, again = run(tiny, "un2clip-anchored", compute={how: True, "refer_every": 1}, **FAST)
    for row, other in zip(again, history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_bf16_is_near_and_its_masters_stay_fp32(tiny) -> None:
    """Losses within bf16's rounding of fp32's; what trains stays float32, and moves by less than bf16 could hold."""
    before = load_clip(tiny.backbones / "clip")
    _, _, history = run(tiny, "un2clip-anchored", lr={"encoder": 1e-6})
    compute = {"precision": "bf16", "frozen": "bf16"}
    clip, objective, again = run(tiny, "un2clip-anchored", compute=compute, lr={"encoder": 1e-6})
    assert [row["diffusion_loss"] for row in again] == pytest.approx(
        [row["diffusion_loss"] for row in history], rel=0.02
    )
    assert {value.dtype for value in clip.model.visual.state_dict().values()} == {torch.float32}
    assert {value.dtype for value in objective.decoder.unet.state_dict().values()} == {torch.bfloat16}
    old, new = before.model.visual.conv1.weight, clip.model.visual.conv1.weight
    assert not torch.equal(old, new)
    assert (old.bfloat16() == new.bfloat16()).float().mean() > 0.9


def test_the_error_of_another_precision_is_said(tiny, capsys, monkeypatch) -> None:
    """bf16 by its emulation on a processor, of the first loss; what is printed is what the first record says."""
    _, _, exact = run(tiny, "un2clip", steps=1)
    assert "first loss" not in capsys.readouterr().out
    _, _, found = run(tiny, "un2clip", compute={"precision": "bf16", "frozen": "bf16", "refer_every": 1}, steps=1)
    said = re.search(r"the first loss is (\S+) in bf16 and (\S+) in fp32: it is (\S+) off\n", capsys.readouterr().out)
    assert said, "no more than a thousandth"
    half, full, error = map(float, said.groups())
    assert half == pytest.approx(found[0]["loss"], rel=1e-4) and full == pytest.approx(exact[0]["loss"], rel=1e-4)
    assert 0 < error == pytest.approx(abs(half - full) / full, rel=0.1)
    monkeypatch.setattr(loop, "MOST_ERROR", error / 2)
    run(tiny, "un2clip", compute={"precision": "bf16", "frozen": "bf16", "refer_every": 1}, steps=1)
    assert ", which is more than " in capsys.readouterr().out


def test_tf32_is_on_while_it_trains(tiny, monkeypatch) -> None:
    """In products and convolutions, and off again afterwards; on a processor it changes no number."""
    flags = [torch.backends.cuda.matmul, torch.backends.cudnn]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as pick_device leaves it for a GPU
    seen, stepped = [], loop.Replicas.step

    def step(self, number: int) -> None:
        seen.append([flag.allow_tf32 for flag in flags])
        stepped(self, number)

    monkeypatch.setattr(loop.Replicas, "step", step)
    _, _, exact = run(tiny, "un2clip", steps=2)
    _, _, found = run(tiny, "un2clip", compute={"precision": "tf32", "refer_every": 1}, steps=2)
    assert seen == 2 * [[False, False]] + 2 * [[True, True]] and [flag.allow_tf32 for flag in flags] == [False, False]
    assert found == exact


def test_frozen_bf16_needs_bf16(tiny) -> None:
    """Frozen weights in bf16 under fp32 arithmetic would be two dtypes in one product."""
    with pytest.raises(ValueError, match="frozen must be fp32 where precision is fp32"):
        prepare(tiny, "un2clip", frozen="bf16")


def test_the_average_is_the_naive_one(tiny) -> None:
    """With ema_decay the result is the moving average of the weights after each step, computed here by hand."""
    ends = [run(tiny, "un2clip", steps=steps, **FAST)[0].model.visual for steps in (1, 2, 3)]
    start = load_clip(tiny.backbones / "clip").model.visual
    averaged, _, _ = run(tiny, "un2clip", steps=3, **FAST, ema_decay=0.75)
    for name, average in start.named_parameters():
        for end in ends:
            average = 0.75 * average + 0.25 * end.get_parameter(name)
        torch.testing.assert_close(averaged.model.visual.get_parameter(name), average, rtol=1e-5, atol=1e-6)


def five_of_eight(filler: float):
    """Batches whose last three samples are `filler` and marked corrupt; of step 1 none is valid."""

    def spoilt(shape: tuple[int, ...], start: int):
        for step, batch in enumerate(batches(shape)):
            valid = torch.arange(8) < (0 if step == 1 else 5)
            values = {name: batch[name] for name in ("pixel_values", "target")}
            filled = {name: torch.where(valid[:, None, None, None], x, filler) for name, x in values.items()}
            yield batch | filled | {"valid": valid}

    return spoilt


def test_what_cannot_be_read_does_not_count(tiny) -> None:
    """The loss is the mean over the valid; what stands in the other rows changes nothing; an empty step is none."""
    clip, _, history = run(tiny, "un2clip-anchored", five_of_eight(0.0), noise=NOISE, **FAST)
    other, _, again = run(tiny, "un2clip-anchored", five_of_eight(3.0), noise=NOISE, **FAST)
    assert history == again and tensors_sha256(clip.model.state_dict()) == tensors_sha256(other.model.state_dict())
    assert [(row["step"], row["corrupt"]) for row in history] == [(0, 3), (2, 14)]
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    batch, rng = next(five_of_eight(0.0)((4, 8, 8), 0)), torch.Generator().manual_seed(0)
    sampled = generator.draw(8, rng, NOISE)
    with torch.no_grad():
        cond = Cond(vector=clip.embed(batch["pixel_values"]))
        loss = generator.loss(batch["target"], cond, sampled)["diffusion_loss"][:5].mean().item()
    assert history[0]["diffusion_loss"] == pytest.approx(loss, rel=1e-6)


def test_no_reference_where_nothing_asks_for_one(tiny) -> None:
    """Without an anchor and a log of the cosine there is no copy of the encoder; with either there is one."""
    assert prepare(tiny, "un2clip", refer_every=0)[1].reference is None
    assert prepare(tiny, "un2clip", refer_every=5)[1].reference is not None
    assert prepare(tiny, "un2clip-anchored", refer_every=0)[1].reference is not None
    _, _, history = run(tiny, "un2clip", compute={"refer_every": 2}, **FAST)
    assert ["cosine" in row for row in history] == [True, False, True]
    assert history[0]["cosine"] == pytest.approx(1, abs=1e-6) and history[2]["cosine"] < 1


def test_an_encoder_is_not_trained_in_shards(tiny) -> None:
    """It is refused before any process waits for another, and nothing of the objective is changed."""
    clip, objective, params = prepare(tiny, "un2clip", shard=True)
    before = tensors_sha256(clip.model.state_dict())
    with pytest.raises(UserError, match="compute.shard must be false here: an assistant alone"):
        Shards(objective, ("encoder",), params.phases["tune"], params.compute, 0)
    assert tensors_sha256(clip.model.state_dict()) == before
