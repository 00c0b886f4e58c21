"""The unCLIP: a decoder that draws an image from a CLIP image embedding.

It does what diffusers' StableUnCLIPImg2ImgPipeline does, but with gradients, with a noise level for each sample,
and with the embedding given. docs/generators.md lists the traps on this path and where each is handled.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from un2clip.decoders.decoder import Cond, NoiseConfig, NoiseSample, draw_timesteps
from un2clip.decoders.diffusion import Diffusion
from un2clip.errors import UserError

#: Width of the embedding -> which unCLIP reads it (Stability-AI/stablediffusion, doc/UNCLIP.MD).
MADE_FOR = {
    768: "Stable unCLIP-L, made for OpenAI's ViT-L-14",
    1024: "Stable unCLIP-H, made for OpenCLIP's ViT-H-14",
}


class Unclip(Diffusion):
    """U-Net, VAE, noise augmentation and normaliser of an unCLIP.

    `parts` are those that every Diffusion has. The normaliser's statistics are buffers here: diffusers holds them as
    parameters and makes them anew, trainable again, at every `.to()`.

    Attributes:
        unet: its `class_labels` carry the embedding.
        image_noising_scheduler: noise schedule of the embedding.
        normalise: whether the embedding is normalised before its noise is added.
        mean, std: (1, D) float32 statistics of the embedding.
        prompt_embeds, empty_prompt_embeds: in the U-Net's dtype.

    Raises:
        UserError: the parts do not fit each other, or training has no formula for them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        image_noising_scheduler: DDPMScheduler,
        mean: Tensor,
        std: Tensor,
        normalise: bool,
        **parts: Any,
    ) -> None:
        super().__init__(unet=unet, **parts)
        self.image_noising_scheduler = image_noising_scheduler
        self.normalise = normalise
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())
        width = unet.config.projection_class_embeddings_input_dim
        if unet.config.class_embed_type != "projection" or width != 2 * self.embed_dim:
            raise UserError(
                f"the U-Net takes class labels of {width} numbers and the normaliser gives 2 x {self.embed_dim}; "
                "unet/ and image_normalizer/ are of different checkpoints"
            )

    @property
    def embed_dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def num_noise_levels(self) -> int:
        return int(self.image_noising_scheduler.config.num_train_timesteps)

    def check_fits(self, embed_dim: int) -> None:
        """Raise a UserError, which says what would fit, unless the unCLIP reads embeddings of width `embed_dim`."""
        if embed_dim != self.embed_dim:
            other = MADE_FOR.get(embed_dim, "no published unCLIP that we know; `finetune --method=align` trains one")
            raise UserError(
                f"the encoder's embedding has {embed_dim} numbers and the generator understands {self.embed_dim}; "
                f"for {embed_dim} there is {other}"
            )

    def prepare(
        self, *, dtype: torch.dtype, checkpointing: bool = False, channels_last: bool = False, compiled: bool = False
    ) -> None:
        super().prepare(dtype=dtype, checkpointing=checkpointing, channels_last=channels_last, compiled=compiled)
        self.prompt_embeds, self.empty_prompt_embeds = self.prompt_embeds.to(dtype), self.empty_prompt_embeds.to(dtype)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Replace the normaliser's statistics, both (1, D): `align` measures them on its data."""
        assert mean.shape == self.mean.shape and std.shape == self.std.shape, (mean.shape, std.shape)
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise UserError("the embedding's statistics are not finite, or a deviation is not positive")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def check(self, noise: NoiseConfig) -> None:
        super().check(noise)
        low, high = noise.noise_level
        if not 0 <= low <= high < self.num_noise_levels:
            raise UserError(f"noise_level must lie within 0 and {self.num_noise_levels - 1}, got {low} to {high}")

    def draw(self, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        """noise_level and timesteps (n,) int64, noise (n, C, h, w), embedding_noise (n, D), keep (n,) bool."""
        low, high = noise.noise_level
        fixed = torch.full((n,), low, dtype=torch.int64)
        sample = {
            "noise_level": fixed if low == high else low + torch.randint(high + 1 - low, (n,), generator=rng),
            "timesteps": draw_timesteps(n, rng, noise),
            "noise": torch.randn((n, *self.target_shape), generator=rng),
            "embedding_noise": torch.randn((n, self.embed_dim), generator=rng),
        }
        if noise.condition_dropout is not None:
            sample["keep"] = torch.rand(n, generator=rng) >= noise.condition_dropout
        return sample

    def class_labels(self, image_embeds: Tensor, noise_level: Tensor, noise: Tensor) -> Tensor:
        """The U-Net's condition, (B, 2 D): the noised embedding, and the noise level in sinusoids.

        Equals StableUnCLIPImg2ImgPipeline.noise_image_embeddings for the same noise, but takes a level for
        each sample. Level 0 is not noise-free: its noise has a standard deviation of 0.0064 in normalised
        units with the usual schedule.

        Args:
            image_embeds: (B, D), not L2-normalised.
            noise_level: (B,) int64 in 0..num_noise_levels - 1.
            noise: (B, D) standard normal.
        """
        scaled = (image_embeds - self.mean) / self.std if self.normalise else image_embeds
        noised = self.image_noising_scheduler.add_noise(scaled, noise, noise_level)
        noised = noised * self.std + self.mean if self.normalise else noised
        level = get_timestep_embedding(noise_level, self.embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([noised, level.to(noised.dtype)], dim=1)

    def told(self, cond: Cond, noise_sample: NoiseSample) -> Cond:
        """`cond.vector`, the embedding (B, D), not L2-normalised, as class labels (B, 2 D); zeros: it is dropped."""
        assert cond.vector is not None
        labels = self.class_labels(cond.vector, noise_sample["noise_level"], noise_sample["embedding_noise"])
        if "keep" in noise_sample:
            labels = labels * noise_sample["keep"][:, None]
        return Cond(vector=labels, sequence=self.prompt_embeds.expand(len(labels), -1, -1))

    def at(self, noisy_latents: Tensor, timesteps: Tensor, told: Cond) -> Tensor:
        dtype = self.prompt_embeds.dtype
        assert told.vector is not None
        return self.unet(
            noisy_latents.to(dtype),
            timesteps,
            encoder_hidden_states=told.sequence,
            class_labels=told.vector.to(dtype),
        ).sample.float()

    def sample(
        self, cond: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float, noise_level: int
    ) -> Tensor:
        """As Decoder.sample. `cond.vector` is the embedding.

        With a DDIM sampler the pipeline gives the same images for the same `rng`: it draws the embedding's noise and
        then the latents, and both branches go through the U-Net as one batch. The unconditional branch has the empty
        prompt, and class labels of zero, embedding and level.
        """
        n = len(cond)
        sample = {
            "noise_level": torch.full((n,), noise_level, device=self.device),
            "embedding_noise": torch.randn((n, self.embed_dim), generator=rng).to(self.device),
        }
        told = self.told(cond, sample)
        assert told.vector is not None
        nothing = Cond(vector=torch.zeros_like(told.vector), sequence=self.empty_prompt_embeds.expand(n, -1, -1))
        return self.denoise(told, nothing, rng, sampling_steps=sampling_steps, guidance_scale=guidance_scale)
