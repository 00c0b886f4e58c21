import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from un2clip.decoders import load_generator
from un2clip.decoders.decoder import Cond, NoiseConfig, NoiseSample, draw_timesteps
from un2clip.methods.anchors import EmbeddingAnchor
from un2clip.methods.features import Features


@pytest.fixture()
def generator(tiny):
    return load_generator(tiny.backbones / "unclip")


@pytest.fixture()
def drawn(generator) -> tuple[torch.Tensor, torch.Tensor, NoiseSample]:
    rng = torch.Generator().manual_seed(0)
    latents, embeds = torch.randn(6, 4, 8, 8, generator=rng), torch.randn(6, generator.embed_dim, generator=rng)
    return latents, embeds, generator.draw(6, rng, noise(condition_dropout=0.0))


def noise(**changes: object) -> NoiseConfig:
    numbers = {
        "timesteps": (0, 999),
        "timesteps_drawn": "independent",
        "noise_level": (0, 0),
        "condition_dropout": 0.0,
        "time_scale": 1.0,
    }
    return NoiseConfig(**(numbers | changes))


def diffusion_loss(generator, latents: torch.Tensor, embeds: torch.Tensor, sampled: NoiseSample) -> torch.Tensor:
    (loss,) = generator.loss(latents, Cond(vector=embeds), sampled).values()
    return loss


class Oracle(nn.Module):
    """A U-Net that knows the answer."""

    def __init__(self, answer: torch.Tensor, config: object) -> None:
        super().__init__()
        self.answer, self.config = answer, config

    def forward(self, *args: object, **kwargs: object) -> object:
        return type("Output", (), {"sample": self.answer})


def test_loss_is_zero_for_the_target(generator, drawn) -> None:
    """A generator that returns the exact target has loss 0, one that is off by one has loss 1."""
    latents, embeds, sampled = drawn
    target = generator.wanted(latents, sampled["noise"], sampled["timesteps"])
    for answer, loss in ((target, 0.0), (target + 1, 1.0)):
        generator.unet = Oracle(answer, generator.unet.config)
        assert_close(diffusion_loss(generator, latents, embeds, sampled), torch.full((6,), loss))


def test_loss_equals_the_formula_written_out(generator, drawn) -> None:
    """Per-sample loss against diffusers' scheduler and U-Net called by hand."""
    latents, embeds, sampled = drawn
    labels = generator.class_labels(embeds, sampled["noise_level"], sampled["embedding_noise"])
    noisy = generator.scheduler.add_noise(latents, sampled["noise"], sampled["timesteps"])
    prompt = generator.prompt_embeds.expand(6, -1, -1)
    with torch.no_grad():
        prediction = generator.unet(noisy, sampled["timesteps"], prompt, class_labels=labels).sample
        ours = diffusion_loss(generator, latents, embeds, sampled)
    target = generator.scheduler.get_velocity(latents, sampled["noise"], sampled["timesteps"])
    assert_close(ours, torch.stack([mse_loss(p, t) for p, t in zip(prediction, target, strict=True)]))


def test_dropped_condition_is_all_zero(generator, drawn) -> None:
    """With every condition dropped the embedding does not matter; with none dropped it does."""
    latents, embeds, sampled = drawn
    nn.init.normal_(generator.unet.class_embedding.linear_2.weight)
    dropped = sampled | {"keep": torch.zeros(6, dtype=torch.bool)}
    with torch.no_grad():
        assert torch.equal(
            diffusion_loss(generator, latents, embeds, dropped), diffusion_loss(generator, latents, -embeds, dropped)
        )
        assert not torch.equal(
            diffusion_loss(generator, latents, embeds, sampled),
            diffusion_loss(generator, latents, -embeds, sampled),
        )


def test_draws_cover_their_ranges(generator) -> None:
    """Timesteps stay within their bounds and reach both; levels are uniform or constant; dropout is as asked."""
    rng = torch.Generator().manual_seed(0)
    sampled = generator.draw(4000, rng, noise(timesteps=(3, 7), noise_level=(0, 999), condition_dropout=0.25))
    assert set(sampled["timesteps"].tolist()) == {3, 4, 5, 6, 7}
    assert sampled["noise_level"].min() < 10 and sampled["noise_level"].max() > 990
    assert sampled["keep"].float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(generator.draw(4000, rng, noise(noise_level=(9, 9)))["noise_level"].tolist()) == {9}
    some = generator.draw(4000, rng, noise(noise_level=(20, 22)))["noise_level"]
    assert set(some.tolist()) == {20, 21, 22}


def test_anchor_is_a_distance_in_the_normalisers_units(generator) -> None:
    """Exactly 0 for equal embeddings; moving every number by its own standard deviation gives 1."""
    embeds = torch.randn(4, generator.embed_dim)
    anchor = EmbeddingAnchor(generator.std)
    assert torch.equal(anchor(Features(pooled=embeds), Features(pooled=embeds)), torch.zeros(4))
    assert_close(anchor(Features(pooled=embeds + generator.std), Features(pooled=embeds)), torch.ones(4))


def test_stratified_timesteps_are_uniform_each_and_even_together() -> None:
    """One of each eighth of the range a batch; for every sample each timestep is as likely as any other."""
    rng = torch.Generator().manual_seed(0)
    numbers = noise(timesteps=(2, 21), timesteps_drawn="stratified")
    drawn = torch.stack([draw_timesteps(8, rng, numbers) for _ in range(8000)])
    bounds = torch.arange(9) * 20 / 8  # an eighth of 20 timesteps is 2.5 of them: its ends may fall into one
    ordered = drawn.sort(dim=1).values - 2
    assert (ordered >= bounds[:-1].floor()).all() and (ordered < bounds[1:].ceil()).all()
    for i in range(8):
        counts = torch.bincount(drawn[:, i], minlength=22)
        assert counts[:2].sum() == 0 and chisquare(counts[2:].numpy()).pvalue > 0.001


def test_stratified_timesteps_leave_the_mean_and_take_variance() -> None:
    """Of a loss that grows with t: the same mean as by independent draws, and the variance that the formula gives."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for how in ("independent", "stratified"):
        numbers = noise(timesteps_drawn=how)
        losses = [draw_timesteps(16, rng, numbers).double().mean() for _ in range(4000)]
        found[how] = torch.stack(losses)
    for losses in found.values():
        assert losses.mean().item() == pytest.approx(499.5, abs=4 * losses.std().item() / 4000**0.5)
    # independent: 1000^2/12/16; one draw in each sixteenth of the range: 1000^2/12/16 once more by 16^2
    variances = {how: losses.var().item() for how, losses in found.items()}
    assert variances["independent"] == pytest.approx(1e6 / 12 / 16, rel=0.1)
    assert variances["stratified"] == pytest.approx(1e6 / 12 / 16**3, rel=0.1)


def test_independent_timesteps_are_those_of_before(generator) -> None:
    """The neutral value draws what torch.randint draws, first of all."""
    sampled = generator.draw(6, torch.Generator().manual_seed(7), noise(timesteps=(30, 90)))
    assert torch.equal(sampled["timesteps"], torch.randint(30, 91, (6,), generator=torch.Generator().manual_seed(7)))
