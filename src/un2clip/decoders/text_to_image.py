"""A text-to-image U-Net: a decoder whose cross-attention reads a sequence in the place of a text (arXiv 2112.10752)."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from un2clip.decoders.decoder import Cond, NoiseSample
from un2clip.decoders.diffusion import Diffusion


class TextToImage(Diffusion):
    """Stable Diffusion's U-Net, VAE and noise schedule.

    Attributes:
        prompt_embeds: (1, L, C) hidden states of the prompt, to which a condition may add.
        empty_prompt_embeds: the same of the empty prompt: what a dropped condition is.
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
        super().__init__(unet, vae, scheduler, image_px)
        self.register_buffer("prompt_embeds", prompt_embeds.detach().clone())
        self.register_buffer("empty_prompt_embeds", empty_prompt_embeds.detach().clone())
        self.requires_grad_(False).eval()

    def told(self, cond: Cond, noise_sample: NoiseSample) -> Cond:
        """`cond.sequence` (B, L, C) stands in the place of the text's; the empty prompt's where it is dropped."""
        assert cond.sequence is not None
        if "keep" not in noise_sample:
            return cond
        return Cond(sequence=torch.where(noise_sample["keep"][:, None, None], cond.sequence, self.empty_prompt_embeds))

    def at(self, noisy_latents: Tensor, timesteps: Tensor, told: Cond) -> Tensor:
        dtype = self.unet.dtype
        assert told.sequence is not None
        sequence = told.sequence.to(dtype)
        return self.unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=sequence).sample.float()

    def sample(
        self, cond: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float, noise_level: int
    ) -> Tensor:
        """As Decoder.sample; the unconditional branch has the empty prompt."""
        assert cond.sequence is not None
        nothing = Cond(sequence=self.empty_prompt_embeds.expand_as(cond.sequence))
        return self.denoise(cond, nothing, rng, sampling_steps=sampling_steps, guidance_scale=guidance_scale)
