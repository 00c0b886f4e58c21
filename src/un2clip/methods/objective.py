"""The equation, once: diffusion loss of the generator given the encoder's embedding, and the anchors.

Everything random is drawn beforehand into `NoiseSample`, so that two encoders can be measured on the same noise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from un2clip.decoders import Generator
from un2clip.methods.anchors import anchor_distance, caption_kl

Timesteps = Literal["independent", "stratified"]


@dataclass(frozen=True, kw_only=True)
class NoiseSample:
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

    def narrow(self, part: slice) -> "NoiseSample":
        """Those of a part of the batch."""
        return NoiseSample(**{name: value[part] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "NoiseSample":
        """The same numbers on another device: they are drawn on the CPU, so that a GPU meets the same ones."""
        return NoiseSample(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def sample_noise(
    generator: Generator,
    shape: Sequence[int],
    rng: torch.Generator,
    *,
    timesteps: tuple[int, int],
    timesteps_drawn: Timesteps = "independent",
    noise_level: int | None,
    condition_dropout: float,
) -> NoiseSample:
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
    return NoiseSample(
        timesteps=low + drawn,
        noise=torch.randn(tuple(shape), generator=rng),
        noise_level=level,
        embedding_noise=torch.randn((n, generator.embed_dim), generator=rng),
        keep=torch.rand(n, generator=rng) >= condition_dropout,
    )


def diffusion_loss(generator: Generator, latents: Tensor, image_embeds: Tensor, noise_sample: NoiseSample) -> Tensor:
    """Mean squared error of the generator's prediction against its own target, one number a sample (B,).

    E_t,noise ||G(z_t, t, e) - target||^2 with e the embedding: arXiv 2505.24517, eq. 3; the target is the
    noise or v, whichever the generator was trained for.

    Args:
        latents: (B, C, h, w), scaled.
        image_embeds: (B, D), not L2-normalised; gradients flow into it through the frozen generator.
    """
    noisy_latents = generator.add_noise(latents, noise_sample.noise, noise_sample.timesteps)
    labels = generator.class_labels(image_embeds, noise_sample.noise_level, noise_sample.embedding_noise)
    prediction = generator(noisy_latents, noise_sample.timesteps, labels * noise_sample.keep[:, None])
    target = generator.target(latents, noise_sample.noise, noise_sample.timesteps)
    return (prediction - target).square().mean(dim=(1, 2, 3))


class Losses(nn.Module):
    """The diffusion loss and the anchors.

    The reference is a copy of the encoder as it is now; where the encoder does not train, it is the encoder itself.

    Args:
        visual: the encoder.
        projector: between it and the generator.
        captions: (K, D), of anchors.embed_bank; None without the caption-KL anchor.
    """

    visual: nn.Module
    reference: nn.Module

    def __init__(
        self,
        visual: nn.Module,
        projector: nn.Module,
        generator: Generator,
        captions: Tensor | None,
        *,
        trains_encoder: bool,
    ) -> None:
        super().__init__()
        self.visual, self.projector, self.generator = visual, projector, generator
        self.captions, self.trains_encoder = captions, trains_encoder
        self.reference = copy.deepcopy(visual).requires_grad_(False).eval() if trains_encoder else visual

    def forward(
        self, pixel_values: Tensor, latents: Tensor, noise_sample: NoiseSample
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diffusion loss, distance to the reference's embedding, divergence over captions, cosine: (b,) float32 each.

        Without captions their divergence is 0.
        """
        with torch.set_grad_enabled(self.trains_encoder):
            image_embeds = self.visual(pixel_values).float()
        with torch.no_grad():
            reference_embeds = self.reference(pixel_values).float() if self.trains_encoder else image_embeds
        rec = diffusion_loss(self.generator, latents, self.projector(image_embeds).float(), noise_sample)
        anchor = anchor_distance(self.generator, image_embeds, reference_embeds)
        cosine = cosine_similarity(image_embeds.detach(), reference_embeds)
        if self.captions is None:
            return rec, anchor, torch.zeros_like(anchor), cosine
        return rec, anchor, caption_kl(image_embeds, reference_embeds, self.captions), cosine
