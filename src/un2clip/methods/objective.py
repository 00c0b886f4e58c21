"""The equation, once: diffusion loss of the generator given the encoder's embedding, and the anchors.

Everything random is drawn beforehand into `Draws`, so that two encoders can be measured on the same noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from un2clip.decoders import Generator

Timesteps = Literal["independent", "stratified"]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one evaluation of the loss.

    Attributes:
        timesteps: (B,) int64 in 0..T-1.
        noise: (B, C, h, w) standard normal, added to the latents.
        noise_level: (B,) int64, level of the embedding's noise augmentation.
        embedding_noise: (B, D) standard normal, added to the embedding.
        keep: (B,) bool; False drops the whole condition, as in classifier-free guidance (arXiv 2207.12598).
    """

    timesteps: Tensor
    noise: Tensor
    noise_level: Tensor
    embedding_noise: Tensor
    keep: Tensor

    def rows(self, rows: slice) -> "Draws":
        """Those of a part of the batch."""
        return Draws(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "Draws":
        """The same numbers on another device: they are drawn on the CPU, so that a GPU meets the same ones."""
        return Draws(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def draw(
    generator: Generator,
    shape: Sequence[int],
    rng: torch.Generator,
    *,
    timesteps: tuple[int, int],
    timesteps_drawn: Timesteps = "independent",
    noise_level: int | None,
    condition_dropout: float,
) -> Draws:
    """Draw for a batch of latents of this shape, (B, C, h, w).

    Args:
        timesteps: lowest and highest timestep, both included, drawn uniformly.
        timesteps_drawn: independent: each sample for itself. stratified: one of each B-th of the range, dealt out at
            random. Each sample's timestep is uniform in both, so the mean loss has the same expectation; the second
            spares it the variance of which timesteps a batch happens to meet (arXiv 2107.00630, 2605.21489).
        noise_level: one level for all, or None: uniform over all levels, one for each sample.
        condition_dropout: probability that a sample's condition is dropped.
    """
    n = shape[0]
    low, high = timesteps
    level = (
        torch.randint(generator.num_noise_levels, (n,), generator=rng)
        if noise_level is None
        else torch.full((n,), noise_level, dtype=torch.int64)
    )
    width = high + 1 - low
    drawn = torch.randint(width, (n,), generator=rng)
    if timesteps_drawn == "stratified":
        drawn = (torch.randperm(n, generator=rng) * width + drawn) // n
    return Draws(
        timesteps=low + drawn,
        noise=torch.randn(tuple(shape), generator=rng),
        noise_level=level,
        embedding_noise=torch.randn((n, generator.embed_dim), generator=rng),
        keep=torch.rand(n, generator=rng) >= condition_dropout,
    )


def diffusion_loss(generator: Generator, latents: Tensor, image_embeds: Tensor, draws: Draws) -> Tensor:
    """Mean squared error of the generator's prediction against its own target, one number a sample (B,).

    E_t,noise ||G(z_t, t, e) - target||^2 with e the embedding: arXiv 2505.24517, eq. 3; the target is the
    noise or v, whichever the generator was trained for.

    Args:
        latents: (B, C, h, w), scaled.
        image_embeds: (B, D), not L2-normalised; gradients flow into it through the frozen generator.
    """
    noisy_latents = generator.add_noise(latents, draws.noise, draws.timesteps)
    labels = generator.class_labels(image_embeds, draws.noise_level, draws.embedding_noise)
    prediction = generator(noisy_latents, draws.timesteps, labels * draws.keep[:, None])
    target = generator.target(latents, draws.noise, draws.timesteps)
    return (prediction - target).square().mean(dim=(1, 2, 3))


def anchor_distance(generator: Generator, image_embeds: Tensor, reference_embeds: Tensor) -> Tensor:
    """Mean squared distance to the reference's embedding, in the normaliser's units, one number a sample (B,)."""
    return ((image_embeds - reference_embeds) / generator.std).square().mean(dim=1)


def caption_divergence(image_embeds: Tensor, reference_embeds: Tensor, captions: Tensor) -> Tensor:
    """How far the image's likeness to a bank of captions is from the reference's, in nats, one number a sample (B,).

    KL(p0 || p) of the softmax over the captions at CLIP's own temperature: learning without forgetting
    (arXiv 1606.09282), for CLIP as in ZSCL (arXiv 2303.06628). What moves all captions alike costs nothing.

    Args:
        image_embeds, reference_embeds: (B, D), not L2-normalised.
        captions: (K, D), of length CLIP's scale.
    """
    with torch.autocast(captions.device.type, enabled=False):  # logits reach 100: bf16 would see steps of a half
        tuned, reference = (
            (normalize(embeds.float(), dim=1) @ captions.T).log_softmax(dim=1)
            for embeds in (image_embeds, reference_embeds)
        )
        return kl_div(tuned, reference, reduction="none", log_target=True).sum(dim=1)
