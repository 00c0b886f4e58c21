"""A text-to-image U-Net: a decoder whose cross-attention reads a sequence in the place of a text (arXiv 2112.10752)."""

import torch
from torch import Tensor

from un2clip.decoders.decoder import Cond, NoiseSample
from un2clip.decoders.diffusion import Diffusion


class TextToImage(Diffusion):
    """Stable Diffusion's U-Net, VAE and noise schedule.

    A condition may add to `prompt_embeds`; where it is dropped, `empty_prompt_embeds` stand in its place.
    """

    reads = ("sequence",)

    def told(self, cond: Cond, noise_sample: NoiseSample) -> Cond:
        """`cond.sequence` (B, L, C) stands in the place of the text's; the empty prompt's where it is dropped."""
        assert cond.sequence is not None
        if "keep" not in noise_sample:
            return cond
        nothing = self._nothing(cond.sequence)
        return Cond(sequence=torch.where(noise_sample["keep"][:, None, None], cond.sequence, nothing))

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
        nothing = Cond(sequence=self._nothing(cond.sequence))
        return self.denoise(cond, nothing, rng, sampling_steps=sampling_steps, guidance_scale=guidance_scale)

    def _nothing(self, sequence: Tensor) -> Tensor:
        """The empty prompt, as long as a sequence; its mean at every place of one of another length than a prompt."""
        empty = self.empty_prompt_embeds
        if sequence.shape[1] != empty.shape[1]:
            empty = empty.mean(dim=1, keepdim=True)
        return empty.expand_as(sequence)
