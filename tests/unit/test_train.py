import dataclasses
import itertools
import math

import pytest
import torch

from un2clip.config import build
from un2clip.decoders import load_generator
from un2clip.errors import UserError
from un2clip.hashes import tensors_sha256
from un2clip.methods.anchors import embed_bank
from un2clip.methods.conditions import new_projector
from un2clip.methods.objective import diffusion_loss, sample_noise
from un2clip.methods.table import METHODS
from un2clip.models.clip import load_clip, text_sha256
from un2clip.training.config import ComputeConfig, PhaseConfig, single_process
from un2clip.training.loop import Batch, fit


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def batches(start: int = 0, n: int = 8):
    """Endless batches of noise, from step `start` on."""
    rng = torch.Generator().manual_seed(0)
    for step in itertools.count():
        latents, pixel_values = torch.randn(n, 4, 8, 8, generator=rng), torch.randn(n, 3, 32, 32, generator=rng)
        if step >= start:
            keys = [f"sample{i}" for i in range(n)]
            yield Batch(keys=keys, pixel_values=pixel_values, latents=latents, valid=torch.ones(n, dtype=torch.bool))


CAPTIONS = ["a circle", "a red circle", "two blue moons", "an arrow on grey"]


def run(tiny, method: str, batches=batches, **changes: object):
    """Train three steps; return the CLIP, the generator and the history."""
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    training = build(PhaseConfig, tiny.params["finetune"]["training"], "finetune")
    running = build(ComputeConfig, tiny.params["finetune"]["running"], "running")
    names = {field.name for field in dataclasses.fields(PhaseConfig)}
    training = dataclasses.replace(training, **{k: v for k, v in changes.items() if k in names})
    running = dataclasses.replace(running, **{k: v for k, v in changes.items() if k not in names})
    history: list[dict[str, float]] = []
    rng = torch.Generator().manual_seed(0)
    captions = embed_bank(clip, CAPTIONS) if "captions" in METHODS[method].anchors else None
    fit(clip.model, generator, METHODS[method], training, running, batches, rng, history, captions=captions)
    return clip, generator, history


#: What each row of the table moves, written out by hand: encoder, generator.
MOVES = {
    "un2clip": (True, False),
    "un2clip-anchored": (True, False),
    "un2clip-captions": (True, False),
    "un2clip-longer": (True, False),
    "projector-random": (True, False),
    "projector-identity": (True, False),
    "update-generator": (True, True),
    "align": (False, True),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_moves_and_what_does_not(tiny, method: str) -> None:
    """Every weight of a trained part moves; every other part is bitwise as it was, the text tower always."""
    before, frozen = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    clip, generator, _ = run(tiny, method, encoder_lr=1e-3, decoder_lr=1e-3)
    pairs = {
        "encoder": (state(before.model.visual), state(clip.model.visual), MOVES[method][0]),
        "unet": (state(frozen.unet), state(generator.unet), MOVES[method][1]),
    }
    for part, (old, new, moves) in pairs.items():
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        # one token attends to nothing else: what the mid block's attention asks with has no gradient
        still = {name for name in old if name not in moved}
        assert (not moved) if not moves else (moved and len(still) <= len(old) * 0.1), (part, sorted(still))
    assert tensors_sha256(frozen.vae.state_dict()) == tensors_sha256(generator.vae.state_dict())
    assert torch.equal(frozen.mean, generator.mean) and torch.equal(frozen.std, generator.std)
    assert text_sha256(before.model) == text_sha256(clip.model)


def test_every_encoder_weight_moves(tiny) -> None:
    """un2clip leaves no tensor of the image tower where it was (keys' biases cancel in the softmax)."""
    old = state(load_clip(tiny.backbones / "clip").model.visual)
    clip, _, _ = run(tiny, "un2clip", encoder_lr=1e-3)
    assert [name for name, value in clip.model.visual.state_dict().items() if torch.equal(old[name], value)] == []


def test_anchor_is_exactly_zero_at_step_zero_and_grows(tiny) -> None:
    """At step 0 the encoder is its reference: distance 0, cosine 1, and the loss is the diffusion loss."""
    _, _, history = run(tiny, "un2clip-anchored", encoder_lr=1e-3, anchor_weight=5.0)
    assert history[0]["anchor"] == 0.0 and history[0]["loss"] == history[0]["diffusion_loss"]
    assert history[0]["cosine"] == pytest.approx(1, abs=1e-6)
    last = history[-1]
    assert last["anchor"] > 0 and last["loss"] == pytest.approx(last["diffusion_loss"] + 5 * last["anchor"], rel=1e-6)


def test_anchor_holds(tiny) -> None:
    """The same training with a strong anchor ends nearer to the reference than without."""
    ends = {
        method: run(tiny, method, steps=12, encoder_lr=1e-3, anchor_weight=10.0)[2][-1]["anchor"]
        for method in ("un2clip", "un2clip-anchored")
    }
    assert ends["un2clip-anchored"] < ends["un2clip"] / 2


def test_captions_hold(tiny) -> None:
    """Their divergence starts at exactly 0, is in the loss by its weight, and stays lower than without that weight."""
    numbers = {"steps": 12, "encoder_lr": 1e-3, "anchor_weight": 0.0}
    held, free = (run(tiny, "un2clip-captions", **numbers, caption_weight=weight)[2] for weight in (20.0, 0.0))
    assert held[0]["captions"] == 0.0 and held[0]["loss"] == held[0]["diffusion_loss"]
    last = held[-1]
    assert last["loss"] == pytest.approx(last["diffusion_loss"] + 20 * last["captions"], rel=1e-6)
    assert 0 < last["captions"] < free[-1]["captions"] / 2
    _, _, plain = run(tiny, "un2clip", **numbers)
    assert [row["diffusion_loss"] for row in free] == [row["diffusion_loss"] for row in plain], "a weight of 0 is none"
    assert "captions" not in plain[0]


@pytest.mark.parametrize(
    ("method", "drawn"),
    [("un2clip", "stratified"), ("projector-random", "independent"), ("projector-identity", "independent")],
)
def test_first_steps_are_adamws(tiny, method: str, drawn: str) -> None:
    """Two steps by the loop equal two of torch.optim.AdamW on a loss computed by hand, the projector's too."""
    changes = {"steps": 2, "warmup_steps": 0, "encoder_lr": 1e-3, "weight_decay": 0.1}
    clip, _, history = run(tiny, method, **changes, timesteps_drawn=drawn)
    mine, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    visual = mine.model.visual.requires_grad_(True).train()
    projector = new_projector(METHODS[method].projector, mine.embed_dim, 0)
    parameters = [*visual.parameters(), *projector.parameters()]
    decayed, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    rng, numbers = torch.Generator().manual_seed(0), {"timesteps_drawn": drawn, "condition_dropout": 0.0}
    for record, batch in zip(history, batches(), strict=False):
        sampled = sample_noise(generator, batch.latents.shape, rng, timesteps=(0, 999), noise_level=0, **numbers)
        loss = diffusion_loss(generator, batch.latents, projector(visual(batch.pixel_values)), sampled).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, value in visual.state_dict().items():
        torch.testing.assert_close(clip.model.visual.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_projectors_first_losses(tiny) -> None:
    """As the paper has it: the identity starts with un2clip's loss, to the bit; only later do they part."""
    losses = {
        method: [record["loss"] for record in run(tiny, method, encoder_lr=1e-3)[2]]
        for method in ("un2clip", "projector-identity", "projector-random")
    }
    plain, identity, other = losses.values()
    assert identity[0] == plain[0] and identity[2] != plain[2] and other[0] != plain[0]


def test_a_projector_starts_as_said() -> None:
    """Random: nn.Linear's own law, by the seed alone, torch's state untouched. Identity: gives its input back."""
    before = torch.get_rng_state()
    first, second, third = (new_projector("random", 400, seed) for seed in (1, 1, 2))
    embeds = torch.randn(5, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(new_projector("identity", 400, 0)(embeds), embeds)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, third.weight)
    usual = torch.nn.Linear(400, 400)
    for name in ("weight", "bias"):
        mine, theirs = getattr(first, name), getattr(usual, name)
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    assert not list(new_projector("none", 400, 0).parameters())


def test_same_seed_same_weights(tiny) -> None:
    """Two runs end with the same bytes."""
    first, second = (run(tiny, "un2clip")[0] for _ in range(2))
    assert tensors_sha256(first.model.state_dict()) == tensors_sha256(second.model.state_dict())


def test_non_finite_loss_names_step_and_samples_and_keeps_the_last_good_weights(tiny) -> None:
    """A NaN in the second batch stops at step 1 with the samples' names; the weights are those after step 0."""
    good, _, _ = run(tiny, "un2clip", steps=1)
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    training = build(PhaseConfig, tiny.params["finetune"]["training"], "finetune")

    def poisoned(start: int):
        for i, batch in enumerate(batches()):
            yield batch if i == 0 else dataclasses.replace(batch, latents=batch.latents * math.nan)

    rng = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match=r"loss is nan at step 1 \(samples sample0, sample1"):
        fit(clip.model, generator, METHODS["un2clip"], training, single_process(8), poisoned, rng, [])
    assert tensors_sha256(clip.model.state_dict()) == tensors_sha256(good.model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": (0, 1000)}, "timesteps must lie within 0 and 999, got 0 to 1000"),
        ({"timesteps": (9, 3)}, "timesteps must lie within 0 and 999, got 9 to 3"),
        ({"noise_level": 1000}, "noise_level must be 0 to 999, got 1000"),
    ],
)
def test_settings_outside_the_generators_range(tiny, changes: dict[str, object], message: str) -> None:
    """What the generator can't do is refused before the first step."""
    with pytest.raises(UserError, match=message):
        run(tiny, "un2clip", **changes)


def test_a_trained_generator_listens(tiny) -> None:
    """After `align` on two kinds of pictures, the loss with the other kind's embedding is larger than with the own."""
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    kinds = torch.tensor([1.0, -1.0]).repeat(8)
    pixel_values = kinds[:, None, None, None].expand(-1, 3, 32, 32)
    latents = kinds[:, None, None, None].expand(-1, 4, 8, 8)
    batch = Batch(
        keys=[str(i) for i in range(16)], pixel_values=pixel_values, latents=latents, valid=torch.ones(16) > 0
    )
    numbers = tiny.params["finetune"]["training"] | {"steps": 60, "decoder_lr": 1e-2}
    training = build(PhaseConfig, numbers, "finetune")
    rng = torch.Generator().manual_seed(0)
    fit(
        clip.model,
        generator,
        METHODS["align"],
        training,
        single_process(16),
        lambda _: itertools.repeat(batch),
        rng,
        [],
    )
    sampled = sample_noise(generator, latents.shape, rng, timesteps=(600, 999), noise_level=0, condition_dropout=0.0)
    with torch.no_grad():
        embeds = clip.model.encode_image(pixel_values)
        matched = diffusion_loss(generator, latents, embeds, sampled).mean()
        shuffled = diffusion_loss(generator, latents, embeds.roll(1, 0), sampled).mean()
    assert shuffled > 1.5 * matched


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module, atol: float = 1e-6) -> None:
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("max_per_device", [1, 3, 7])
def test_accumulation_changes_nothing(tiny, max_per_device: int) -> None:
    """A batch in parts of any size gives the records and the weights of the batch at once."""
    whole, _, history = run(tiny, "update-generator", encoder_lr=1e-3)
    parts, _, again = run(tiny, "update-generator", encoder_lr=1e-3, max_per_device=max_per_device)
    for row, other in zip(again, history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert_same_weights(whole.model.visual, parts.model.visual, atol=1e-5)


@pytest.mark.parametrize("how", ["gradient_checkpointing", "channels_last"])
def test_lighter_or_faster_is_the_same_training(tiny, how: str) -> None:
    """What only saves memory or time gives the same losses."""
    _, _, history = run(tiny, "un2clip-anchored", encoder_lr=1e-3)
    _, _, again = run(tiny, "un2clip-anchored", encoder_lr=1e-3, **{how: True})
    for row, other in zip(again, history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_bf16_is_near_and_its_masters_stay_fp32(tiny) -> None:
    """Losses within bf16's rounding of fp32's; what trains stays float32, and moves by less than bf16 could hold."""
    before = load_clip(tiny.backbones / "clip")
    _, _, history = run(tiny, "un2clip-anchored", encoder_lr=1e-6)
    clip, generator, again = run(tiny, "un2clip-anchored", encoder_lr=1e-6, precision="bf16", frozen="bf16")
    assert [row["diffusion_loss"] for row in again] == pytest.approx(
        [row["diffusion_loss"] for row in history], rel=0.02
    )
    assert {value.dtype for value in clip.model.visual.state_dict().values()} == {torch.float32}
    assert {value.dtype for value in generator.unet.state_dict().values()} == {torch.bfloat16}
    old, new = before.model.visual.conv1.weight, clip.model.visual.conv1.weight
    assert not torch.equal(old, new)
    assert (old.bfloat16() == new.bfloat16()).float().mean() > 0.9


def test_frozen_bf16_needs_bf16(tiny) -> None:
    """Frozen weights in bf16 under fp32 arithmetic would be two dtypes in one product."""
    with pytest.raises(ValueError, match="frozen must be fp32 where precision is fp32"):
        run(tiny, "un2clip", frozen="bf16")


def test_the_average_is_the_naive_one(tiny) -> None:
    """With ema_decay the result is the moving average of the weights after each step, computed here by hand."""
    ends = [run(tiny, "un2clip", steps=steps, encoder_lr=1e-3)[0].model.visual for steps in (1, 2, 3)]
    start = load_clip(tiny.backbones / "clip").model.visual
    averaged, _, _ = run(tiny, "un2clip", steps=3, encoder_lr=1e-3, ema_decay=0.75)
    for name, average in start.named_parameters():
        for end in ends:
            average = 0.75 * average + 0.25 * end.get_parameter(name)
        torch.testing.assert_close(averaged.model.visual.get_parameter(name), average, rtol=1e-5, atol=1e-6)


def five_of_eight(filler: float):
    """Batches whose last three samples are `filler` and marked corrupt; of step 1 none is valid."""

    def spoilt(start: int):
        for step, batch in enumerate(batches()):
            valid = torch.arange(8) < (0 if step == 1 else 5)
            values = {name: getattr(batch, name) for name in ("pixel_values", "latents")}
            filled = {name: torch.where(valid[:, None, None, None], x, filler) for name, x in values.items()}
            yield dataclasses.replace(batch, **filled, valid=valid)

    return spoilt


def test_what_cannot_be_read_does_not_count(tiny) -> None:
    """The loss is the mean over the valid; what stands in the other rows changes nothing; an empty step is none."""
    clip, _, history = run(tiny, "un2clip-anchored", five_of_eight(0.0), encoder_lr=1e-3)
    other, _, again = run(tiny, "un2clip-anchored", five_of_eight(3.0), encoder_lr=1e-3)
    assert history == again and tensors_sha256(clip.model.state_dict()) == tensors_sha256(other.model.state_dict())
    assert [(row["step"], row["corrupt"]) for row in history] == [(0, 3), (2, 14)]
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    batch, rng = next(five_of_eight(0.0)(0)), torch.Generator().manual_seed(0)
    sampled = sample_noise(
        generator, batch.latents.shape, rng, timesteps=(0, 999), noise_level=0, condition_dropout=0.0
    )
    with torch.no_grad():
        loss = diffusion_loss(generator, batch.latents, clip.embed(batch.pixel_values), sampled)[:5].mean().item()
    assert history[0]["diffusion_loss"] == pytest.approx(loss, rel=1e-6)
