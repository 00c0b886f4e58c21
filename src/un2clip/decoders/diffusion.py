"""Decoders whose target is a VAE's latents, and those of them that denoise by diffusion."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from un2clip.decoders.decoder import Cond, Decoder, NoiseConfig, NoiseSample, draw_timesteps, guided
from un2clip.errors import UserError
from un2clip.hashes import tensors_sha256

PREDICTION_TYPES = ("epsilon", "v_prediction")


class LatentDecoder(Decoder):
    """A decoder that holds its prediction against latents.

    Attributes:
        vae: image in [-1, 1] <-> latents; always frozen.

    Raises:
        UserError: the size of the images is not a multiple of the VAE's step, or its latents' factor is none.
    """

    def __init__(self, vae: AutoencoderKL, image_px: int) -> None:
        super().__init__()
        self.vae = vae
        shift, scale = self.scale
        if not 0 < scale < math.inf or not math.isfinite(shift):
            raise UserError(
                f"the VAE's configuration says scaling_factor {scale} and shift_factor {shift}; latents are multiplied "
                "by the first, which must be positive (0.18215 in Stable Diffusion's)"
            )
        self.resize(image_px)

    def resize(self, image_px: int) -> None:
        if image_px < 1 or image_px % self.vae_factor:
            raise UserError(
                f"the generator's image_px must be a multiple of {self.vae_factor}, the VAE's step, got {image_px}"
            )
        self.image_px = image_px

    @property
    def vae_factor(self) -> int:
        """Pixels of the image along one side of a latent."""
        return vae_factor(self.vae)

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents: 4 x 96 x 96 for SD-2.1 unCLIP at its own 768 px."""
        side = self.image_px // self.vae_factor
        return int(self.vae.config.latent_channels), side, side

    @property
    def scale(self) -> tuple[float, float]:
        """(shift, scale): latents are (posterior - shift) * scale, as in diffusers; the shift is 0 before FLUX."""
        return float(self.vae.config.get("shift_factor") or 0.0), float(self.vae.config.scaling_factor)

    def networks(self) -> Sequence[nn.Module]:
        return self.network, self.vae

    def target(self, batch: dict[str, Any], at_once: int | None = None) -> Tensor:
        """The batch's latents, (B, C, h, w) float32, scaled: those of the cache, or encoded here."""
        if "latents" in batch:
            return batch["latents"].to(self.device, non_blocking=True)
        images: Tensor = batch["images"]
        return torch.cat([self.encode(part) for part in images.split(at_once or len(images))])

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], anywhere -> mean and deviation of the latents, scaled; float32, contiguous.

        The last convolution may leave its channels last, which a file of latents cannot hold.
        """
        images = images.to(self.device, self.vae.dtype, non_blocking=True)
        posterior, (shift, scale) = self.vae.encode(images).latent_dist, self.scale
        mean, std = (posterior.mean.float() - shift) * scale, posterior.std.float() * scale
        return mean.contiguous(), std.contiguous()

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], anywhere -> latents (B, C, h, w) float32: the posterior's mean, scaled."""
        return self.posterior(images)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) float32 in [-1, 1]."""
        shift, scale = self.scale
        latents = (latents / scale + shift).to(self.vae.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

    def vae_sha256(self) -> str:
        """Hash of all that decides the latents of an image: the VAE's weights, its scale, the image's size."""
        shift, scale = self.scale
        decides = [scale, self.image_px, *([shift] if shift else [])]
        return tensors_sha256({"scale": torch.tensor(decides, dtype=torch.float64)} | self.vae.state_dict())


class Diffusion(LatentDecoder):
    """A U-Net that denoises latents. Training needs DDPM's add_noise and get_velocity whatever sampler is shipped.

    Attributes:
        unet: predicts epsilon or v from noisy latents.
        scheduler: noise schedule of the latents.
        prompt_embeds: (1, L, C) hidden states of the prompt.
        empty_prompt_embeds: the same of the empty prompt, for the unconditional branch of sampling.

    Raises:
        UserError: the parts do not fit each other, or training has no formula for the prediction.
    """

    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        prompt_embeds: Tensor,
        empty_prompt_embeds: Tensor,
        image_px: int | None = None,
    ) -> None:
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the generator's prediction_type is {scheduler.config.prediction_type!r}; "
                f"training needs one of {', '.join(PREDICTION_TYPES)}"
            )
        channels = unet.config.in_channels
        if channels != vae.config.latent_channels:
            raise UserError(
                f"the U-Net takes latents of {channels} channels and the VAE gives {vae.config.latent_channels}"
            )
        if prompt_embeds.shape[-1] != unet.config.cross_attention_dim:
            raise UserError(
                f"the U-Net takes text of width {unet.config.cross_attention_dim} and the text encoder gives "
                f"{prompt_embeds.shape[-1]}; unet/ and text_encoder/ are of different checkpoints"
            )
        super().__init__(vae, int(unet.config.sample_size) * vae_factor(vae) if image_px is None else image_px)
        self.unet, self.scheduler = unet, scheduler
        self.register_buffer("prompt_embeds", prompt_embeds.detach().clone())
        self.register_buffer("empty_prompt_embeds", empty_prompt_embeds.detach().clone())
        self.requires_grad_(False).eval()

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    def check(self, noise: NoiseConfig) -> None:
        low, high = noise.timesteps
        if not 0 <= low <= high < self.num_timesteps:
            raise UserError(f"timesteps must lie within 0 and {self.num_timesteps - 1}, got {low} to {high}")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4)."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net predicts: the noise, or v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0 (arXiv 2202.00512)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)

    def draw(self, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        """timesteps (n,) int64, noise (n, C, h, w), keep (n,) bool."""
        sample = {
            "timesteps": draw_timesteps(n, rng, noise),
            "noise": torch.randn((n, *self.target_shape), generator=rng),
        }
        if noise.condition_dropout is not None:
            sample["keep"] = torch.rand(n, generator=rng) >= noise.condition_dropout
        return sample

    def told(self, cond: Cond, noise_sample: NoiseSample) -> Cond:
        """What the U-Net gets of a condition: noised and dropped as the noise sample says."""
        raise NotImplementedError

    def at(self, noisy_latents: Tensor, timesteps: Tensor, told: Cond) -> Tensor:
        """Predict noise or v, (B, C, h, w) float32, from noisy latents at (B,) int64 timesteps."""
        raise NotImplementedError

    def predict(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> Tensor:
        """As Decoder.predict; gradients flow into the condition through a frozen U-Net."""
        timesteps = noise_sample["timesteps"]
        noisy_latents = self.add_noise(target, noise_sample["noise"], timesteps)
        return self.at(noisy_latents, timesteps, self.told(cond, noise_sample))

    def loss(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """Mean squared error of the prediction against noise or v, whichever the U-Net was trained for.

        E_t,noise ||G(z_t, t, e) - target||^2 with e the condition: arXiv 2505.24517, eq. 3.
        """
        wanted = self.wanted(target, noise_sample["noise"], noise_sample["timesteps"])
        return {"diffusion_loss": (self.predict(target, cond, noise_sample) - wanted).square().mean(dim=(1, 2, 3))}

    @torch.no_grad()
    def denoise(
        self, told: Cond, nothing: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float
    ) -> Tensor:
        """Images from pure noise by DDIM (arXiv 2010.02502), guided away from what `nothing` says."""
        latents = torch.randn((len(told), *self.target_shape), generator=rng).to(self.device)
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(sampling_steps)
        for timestep in tqdm(scheduler.timesteps, unit="step", desc="draw", mininterval=1):
            prediction = guided(self.at, latents, timestep.to(self.device), told, nothing, guidance_scale)
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        return self.decode(latents)


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels of the image along one side of a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
