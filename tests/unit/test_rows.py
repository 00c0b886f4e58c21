"""The rows of the method table: what moves, what holds, and the first steps by hand."""

import dataclasses

import pytest
import torch

from tests.rows import FAST, NOISE, batches, prepare, run, state
from un2clip.decoders import Unclip, load_generator
from un2clip.decoders.flow import Flow
from un2clip.decoders.pixels import Pixels
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError
from un2clip.methods.building import probe
from un2clip.methods.conditions import CONDITIONS, new_condition
from un2clip.methods.features import Encoder, Features
from un2clip.methods.table import METHODS
from un2clip.models.clip import load_clip, text_sha256
from un2clip.training.loop import fit

#: What each row of the table moves, written out by hand: encoder, condition, decoder's network.
MOVES = {
    "un2clip": (True, False, False),
    "un2clip-anchored": (True, False, False),
    "un2clip-captions": (True, False, False),
    "un2clip-uniform": (True, False, False),
    "un2clip-noised": (True, False, False),
    "un2clip-held": (True, False, False),
    "un2clip-noised-held": (True, False, False),
    "un2clip-shuffled": (True, False, False),
    "un2clip-band": (True, False, False),
    "un2clip-longer": (True, False, False),
    "projector-random": (True, True, False),
    "projector-identity": (True, True, False),
    "update-generator": (True, False, True),
    "align": (False, False, True),
    "diva": (True, True, False),
    "genhancer": ("matrices", True, True),
    "dcr": ("matrices", True, False),
    "unilip": (True, True, True),
    "unilip-high": (True, True, True),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_moves_and_what_does_not(tiny, method: str) -> None:
    """Every weight of a trained part moves; everything else is bitwise as it was, the text tower always."""
    before, untouched, _ = prepare(tiny, method)
    clip, objective, _ = run(tiny, method, **FAST)
    old, new = untouched.state_dict(), objective.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    for part, moves in zip(("encoder", "condition", "decoder"), MOVES[method], strict=True):
        module = objective.parts()[part]
        prefix = next(name for name, each in objective.named_modules() if each is module) + "."
        here = {name for name in moved if name.startswith(prefix)}
        moved -= here
        trained = {prefix + name for name, _ in module.named_parameters()}
        if moves == "matrices":  # low-rank updates
            trained = {name for name in trained if name.endswith(("_proj.weight", "c_fc.weight", "in_proj_weight"))}
        # one token attends to nothing else: what the mid block's attention asks with has no gradient
        still = trained - here
        assert (not here) if not moves else (here <= trained and len(still) <= len(trained) * 0.1), sorted(still)
    assert not moved, "neither anchors nor the reference, a VAE nor statistics move"
    assert text_sha256(before.model) == text_sha256(clip.model)


def test_every_encoder_weight_moves(tiny) -> None:
    """un2clip leaves no tensor of the image tower where it was (keys' biases cancel in the softmax)."""
    old = state(load_clip(tiny.backbones / "clip").model.visual)
    clip, _, _ = run(tiny, "un2clip", **FAST)
    assert [name for name, value in clip.model.visual.state_dict().items() if torch.equal(old[name], value)] == []


def test_anchor_is_exactly_zero_at_step_zero_and_grows(tiny) -> None:
    """At step 0 the encoder is its reference: distance 0, cosine 1, and the loss is the diffusion loss."""
    _, _, history = run(tiny, "un2clip-anchored", anchors={"embedding": 5.0}, **FAST)
    assert history[0]["embedding"] == 0.0 and history[0]["loss"] == history[0]["diffusion_loss"]
    assert history[0]["cosine"] == pytest.approx(1, abs=1e-6)
    last = history[-1]
    assert last["embedding"] > 0 and last["loss"] == pytest.approx(
        last["diffusion_loss"] + 5 * last["embedding"], rel=1e-6
    )


def test_anchor_holds(tiny) -> None:
    """The same training with a strong anchor ends nearer to the reference than without."""
    strong, weak = (
        run(tiny, "un2clip-anchored", steps=12, anchors={"embedding": weight}, **FAST)[2] for weight in (10.0, 0.0)
    )
    assert strong[-1]["embedding"] < weak[-1]["embedding"] / 2


def test_captions_hold(tiny) -> None:
    """Their divergence starts at exactly 0, is in the loss by its weight, and stays lower than without that weight."""
    held, free = (
        run(tiny, "un2clip-captions", steps=12, anchors={"embedding": 0.0, "captions": weight}, **FAST)[2]
        for weight in (20.0, 0.0)
    )
    assert held[0]["captions"] == 0.0 and held[0]["loss"] == held[0]["diffusion_loss"]
    last = held[-1]
    assert last["loss"] == pytest.approx(last["diffusion_loss"] + 20 * last["captions"], rel=1e-6)
    assert 0 < last["captions"] < free[-1]["captions"] / 2
    _, _, plain = run(tiny, "un2clip", steps=12, **FAST)
    assert [row["diffusion_loss"] for row in free] == [row["diffusion_loss"] for row in plain], "a weight of 0 is none"
    assert "captions" not in plain[0]


@pytest.mark.parametrize("method", ["un2clip-anchored", "un2clip-captions", "unilip"])
def test_every_anchor_is_exactly_zero_at_first(tiny, method: str) -> None:
    """The encoder is its reference until its first step, whatever phase that is in."""
    _, _, history = run(tiny, method, **FAST)
    first = len(history) - 3
    for name in METHODS[method].anchors:
        assert [row[name] for row in history[: first + 1]] == [0.0] * (first + 1) and history[-1][name] > 0


@pytest.mark.parametrize(
    ("method", "drawn"),
    [("un2clip", "stratified"), ("projector-random", "independent"), ("projector-identity", "independent")],
)
def test_first_steps_are_adamws(tiny, method: str, drawn: str) -> None:
    """Two steps by the loop equal two of torch.optim.AdamW on a loss computed by hand, the projector's too."""
    noise = dataclasses.replace(NOISE, timesteps_drawn=drawn)
    clip, _, history = run(tiny, method, steps=2, warmup_steps=0, weight_decay=0.1, noise=noise, **FAST)
    mine, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    condition = new_condition(METHODS[method].condition, probe(mine), generator, 0)
    visual = mine.model.visual.requires_grad_(True).train()
    parameters = [*visual.parameters(), *condition.parameters()]
    decayed, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    for record, batch in zip(history, batches(), strict=False):
        sampled = generator.draw(8, rng, noise)
        told = condition(Features(pooled=visual(batch["pixel_values"])), sampled)
        loss = generator.loss(batch["target"], told, sampled)["diffusion_loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, value in visual.state_dict().items():
        torch.testing.assert_close(clip.model.visual.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_sgd_is_torchs(tiny) -> None:
    """Two steps of diva with SGD, momentum and two noise samples an image, against torch.optim.SGD by hand."""
    clip, _, history = run(tiny, "diva", steps=2, warmup_steps=0, noise=NOISE, **FAST)
    mine, objective, _ = prepare(tiny, "diva")
    generator, condition = objective.decoder, objective.condition
    tower = Encoder(mine.model.visual.requires_grad_(True).train(), "projected")
    parameters = [*tower.parameters(), *condition.requires_grad_(True).parameters()]
    optimizer, rng = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9), torch.Generator().manual_seed(0)
    for record, batch in zip(history, batches(), strict=False):
        losses = []
        for _ in range(2):
            sampled = generator.draw(8, rng, NOISE) | condition.draw(8, rng)
            told = condition(tower(batch["pixel_values"]), sampled)
            losses.append(generator.loss(batch["target"], told, sampled)["diffusion_loss"].mean())
        optimizer.zero_grad()
        loss = sum(losses) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, value in mine.model.visual.state_dict().items():
        torch.testing.assert_close(clip.model.visual.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_projectors_first_losses(tiny) -> None:
    """As the paper has it: the identity starts with un2clip's loss, to the bit; only later do they part."""
    losses = {
        method: [record["loss"] for record in run(tiny, method, **FAST)[2]]
        for method in ("un2clip", "projector-identity", "projector-random")
    }
    plain, identity, other = losses.values()
    assert identity[0] == plain[0] and identity[2] != plain[2] and other[0] != plain[0]


def test_a_projector_starts_as_said(tiny) -> None:
    """Random: nn.Linear's own law, by the seed alone, torch's state untouched. Identity: gives its input back."""
    generator, before = load_generator(tiny.backbones / "unclip"), torch.get_rng_state()
    features = Features(pooled=torch.randn(5, 400, generator=torch.Generator().manual_seed(0)))
    first, second, third = (new_condition("linear", features, generator, seed).map for seed in (1, 1, 2))
    assert torch.equal(new_condition("linear-identity", features, generator, 0)(features, {}).vector, features.pooled)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, third.weight)
    usual = torch.nn.Linear(400, 400)
    for name in ("weight", "bias"):
        mine, theirs = getattr(first, name), getattr(usual, name)
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    assert not list(new_condition("identity", features, generator, 0).parameters())


def test_the_shuffled_control_is_told_of_the_image_before(tiny) -> None:
    """Its loss is that of un2clip-noised-held with the pixels of the encoder moved on by one, on the same noise."""
    _, shuffled, _ = prepare(tiny, "un2clip-shuffled")
    _, own, _ = prepare(tiny, "un2clip-noised-held")
    batch = next(batches())
    sample = own.draw(batch, 8, torch.Generator().manual_seed(0), NOISE)
    moved = batch | {"pixel_values": batch["pixel_values"].roll(1, dims=0)}
    losses = [objective(given, sample)["diffusion_loss"] for objective, given in ((shuffled, batch), (own, moved))]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(losses[0], own(batch, sample)["diffusion_loss"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "condition", "message"),
    [
        (
            "un2clip",
            "dense",
            "dense tells a sequence, and the decoder Unclip reads a vector; what fits it: identity, ",
        ),
        (
            "diva",
            "identity",
            "identity tells a vector, and .* TextToImage reads a sequence; .*: dense, pooled-mlp, ",
        ),
        ("genhancer", "dense", "dense tells a sequence, and .* Flow reads a vector and a sequence; .*: pooled-mlp$"),
        (
            "unilip",
            "pooled-mlp",
            "pooled-mlp tells a vector and a sequence, .* Pixels reads a spatial; .*: spatial$",
        ),
    ],
)
def test_a_condition_that_does_not_fit_its_decoder_is_said(tiny, method: str, condition: str, message: str) -> None:
    """With the conditions that would fit."""
    clip, objective, params = prepare(tiny, method)
    with pytest.raises(UserError, match=f"^condition {message}"):
        new_condition(condition, probe(clip), objective.decoder, 0, params.conditions)


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_every_row_fits(row) -> None:
    """Whatever its decoder reads, its condition tells."""
    decoder = {"unclip": Unclip, "text_to_image": TextToImage, "flow": Flow, "pixels": Pixels}[row.decoder]
    assert set(decoder.reads) <= set(CONDITIONS[row.condition].tells)


def test_low_rank_updates_of_a_part_without_matrices_are_refused(tiny) -> None:
    """A tower of convolutions alone; nothing has been trained or changed by then."""
    _, objective, params = prepare(tiny, "un2clip")
    phase = dataclasses.replace(params.phases["genhancer-2"], steps=1)
    objective.encoder.visual = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    before = state(objective)
    with pytest.raises(
        UserError, match="^Sequential has no linear or attention layer.*take `encoder` out of the phase"
    ):
        fit(objective, ("encoder",), phase, params.compute, lambda start: batches(), torch.Generator(), [])
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
