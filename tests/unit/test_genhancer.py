"""GenHancer's flow (arXiv 2503.19480): against a naive loss, its times against their laws, and full size on shapes."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL
from scipy.special import logit
from scipy.stats import kstest

from tests.rows import FAST, NOISE, batches, prepare, run
from tests.unit.test_full_size_encoders import ROOT, encoder_of
from un2clip.config import build, convert, read_params
from un2clip.decoders.flow import Flow
from un2clip.errors import UserError
from un2clip.methods.conditions import new_condition
from un2clip.methods.features import Encoder
from un2clip.models.converting import architecture_config, new_model
from un2clip.planning.published import CONFIG
from un2clip.stages.finetune_job import Finetune
from un2clip.study.variants import varied
from un2clip.training.config import PhaseConfig

META = torch.device("meta")


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_the_loss_is_the_naive_one(tiny, scale: float) -> None:
    """Sample by sample, token by token: x_t = (1 - t) x_0 + t noise, both MLPs, and the error against noise - x_0."""
    clip, objective, _ = prepare(tiny, "genhancer")
    flow, condition = objective.decoder, objective.condition
    rng = torch.Generator().manual_seed(1)
    images, target = torch.randn(3, 3, 32, 32, generator=rng), torch.randn(3, *flow.target_shape, generator=rng)
    sample = flow.draw(3, rng, dataclasses.replace(NOISE, time_scale=scale))
    found = objective({"pixel_values": images, "target": target}, sample)["flow_loss"]

    again, (channels, height, width) = torch.Generator().manual_seed(1), flow.target_shape
    torch.randn(3, 3, 32, 32, generator=again), torch.randn(target.shape, generator=again)
    drawn = torch.randn(3, generator=again) if scale else torch.rand(3, generator=again)
    torch.rand(3, generator=again)
    noise = torch.randn(target.shape, generator=again)
    for i in range(3):
        t = 1 / (1 + torch.exp(-scale * drawn[i])) if scale else drawn[i]
        noisy = (1 - t) * target[i] + t * noise[i]
        places = [(row, column) for row in range(height // 2) for column in range(width // 2)]
        tokens = [noisy[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten() for row, column in places]
        embedding = clip.model.visual(images[i : i + 1])
        told = []
        for mlp in (condition.vector, condition.token):
            norm, first, _, second = mlp
            hidden = torch.nn.functional.layer_norm(embedding, embedding.shape[1:], norm.weight, norm.bias)
            hidden = torch.nn.functional.gelu(hidden @ first.weight.T + first.bias)
            told.append(hidden @ second.weight.T + second.bias)
        predicted = flow.transformer(
            hidden_states=torch.stack(tokens)[None],
            timestep=t[None],
            pooled_projections=told[0],
            encoder_hidden_states=told[1][None],
            img_ids=torch.tensor([(0, row, column) for row, column in places]),
            txt_ids=torch.zeros(1, 3),
        ).sample[0]
        velocity = torch.empty_like(noisy)
        for token, (row, column) in zip(predicted, places, strict=True):
            velocity[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token.view(channels, 2, 2)
        torch.testing.assert_close(found[i], (velocity - (noise[i] - target[i])).square().mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.5, 1.0, 5.0])
def test_times_follow_their_law(tiny, scale: float) -> None:
    """logit(t) is normal with the scale for its deviation; a scale of 0 is uniform. The same seed draws the same."""
    flow = prepare(tiny, "genhancer")[1].decoder
    numbers = dataclasses.replace(NOISE, time_scale=scale)
    first, again = (flow.draw(2000, torch.Generator().manual_seed(5), numbers)["t"] for _ in range(2))
    assert torch.equal(first, again)
    times = first.double().numpy()
    law = kstest(logit(times) / scale, "norm") if scale else kstest(times, "uniform")
    assert law.pvalue > 1e-3
    other = kstest(times, "uniform") if scale else kstest(logit(times), "norm")
    assert other.pvalue < 1e-6, "the two laws are told apart"


def test_a_variant_changes_the_times_of_both_phases() -> None:
    """So a study compares its table's two ends: genhancer and genhancer@phases.genhancer-1.noise.time_scale=0."""
    params = varied(read_params(ROOT / "params.yaml"), "genhancer@phases.genhancer-1.noise.time_scale=0")
    phases = convert(dict[str, PhaseConfig], params["finetune"]["phases"], "phases")
    assert [phases[f"genhancer-{number}"].noise.time_scale for number in (1, 2)] == [0.0, 0.0]
    assert phases["tune"].noise.time_scale == 1.0
    params = varied(read_params(ROOT / "params.yaml"), "genhancer@phases.genhancer-1.noise.time_scale=-1")
    with pytest.raises(UserError, match="time_scale must be at least 0, got -1"):
        build(Finetune, params["finetune"], "finetune")


def test_training_lowers_the_loss(tiny) -> None:
    """On one batch and one noise sample, measured before and after the first phase's and the second's steps."""
    _, before, _ = prepare(tiny, "genhancer")
    _, after, _ = run(tiny, "genhancer", steps=6, warmup_steps=0, **FAST)
    batch = next(batches(before.decoder.target_shape))
    sample = before.draw(batch, 8, torch.Generator().manual_seed(0), NOISE)
    losses = [each(batch, sample)["loss"].mean().item() for each in (before, after)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("overlay", ["openai-vit-l-14-336", "siglip-so400m-384"])
def test_full_size_shapes(overlay: str) -> None:
    """The overlay's flow has the 1.31 billion parameters of its paper's table 7, less FLUX's input for guidance, an MLP
    of 256 to 3072 to 3072 numbers; and gradients reach the tower."""
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{name}.yaml" for name in ("genhancer", overlay)])
    numbers = build(Finetune, params["finetune"], "finetune")
    config = architecture_config(encoder_of(overlay).architecture)["model_cfg"]
    side = config["vision_cfg"]["image_size"]
    with META:
        visual = new_model(config).visual
        flow = Flow.scratch(AutoencoderKL(**CONFIG["vae"]), side, numbers.scratch.flow)
        assert flow.target_shape == (4, side // 8, side // 8) and flow.widths == (768, 4096)
        features = Encoder(visual)(torch.zeros(2, 3, side, side))
        condition = new_condition("pooled-mlp", features, flow, 0)
        sample = {"t": torch.zeros(2), "noise": torch.zeros(2, *flow.target_shape), "keep": torch.ones(2)}
        loss = flow.loss(torch.zeros(2, *flow.target_shape), condition(features, {}), sample)["flow_loss"]
    loss.mean().backward()
    guidance = 256 * 3072 + 3072 + 3072 * 3072 + 3072
    assert round((sum(each.numel() for each in flow.transformer.parameters()) + guidance) / 1e9, 2) == 1.31
    assert flow.transformer.config.axes_dims_rope == (16, 56, 56), "FLUX's own"
    assert any(each.grad is not None for each in visual.parameters())
    assert side == 224 or numbers.phases["genhancer-1"].image_px == 224, "its header says that others set it"


def test_latents_of_an_odd_side_are_refused(tiny) -> None:
    """A flow reads them two by two."""
    flow = prepare(tiny, "genhancer")[1].decoder
    step = flow.vae_factor
    flow.resize(6 * step)
    assert flow.target_shape[1:] == (6, 6)
    with pytest.raises(UserError, match=f"must be a multiple of {2 * step}, got {7 * step}"):
        flow.resize(7 * step)
