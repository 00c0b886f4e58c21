"""The generator: an unCLIP that draws an image from a CLIP image embedding.

It does what diffusers' StableUnCLIPImg2ImgPipeline does, but with gradients, with a noise level for each sample,
and with the embedding given. docs/generators.md lists the traps on this path and where each is handled.
"""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from un2clip.datasets.loader import Batch
from un2clip.errors import UserError
from un2clip.hashes import tensors_sha256

PREDICTION_TYPES = ("epsilon", "v_prediction")
#: Width of the embedding -> which unCLIP reads it (Stability-AI/stablediffusion, doc/UNCLIP.MD).
MADE_FOR = {
    768: "Stable unCLIP-L, made for OpenAI's ViT-L-14",
    1024: "Stable unCLIP-H, made for OpenCLIP's ViT-H-14",
}


class Generator(nn.Module):
    """U-Net, VAE, noise augmentation and normaliser of an unCLIP; frozen, and in evaluation mode.

    The normaliser's statistics are buffers here: diffusers holds them as parameters and makes them anew,
    trainable again, at every `.to()`. Training needs DDPM's add_noise and get_velocity whatever sampler
    the checkpoint ships.

    Attributes:
        unet: predicts epsilon or v from noisy latents; `class_labels` carries the embedding.
        vae: image in [-1, 1] <-> latents; always frozen.
        scheduler: noise schedule of the latents.
        image_noising_scheduler: noise schedule of the embedding.
        image_px: side of the square images that the generator draws and the VAE reads.
        normalise: whether the embedding is normalised before its noise is added.
        mean, std: (1, D) float32 statistics of the embedding.
        prompt_embeds: (1, L, C) hidden states of the prompt, in the U-Net's dtype.
        empty_prompt_embeds: the same of the empty prompt, for the unconditional branch of sampling.

    Raises:
        UserError: the parts do not fit each other, or training has no formula for them.
    """

    mean: Tensor
    std: Tensor
    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        image_noising_scheduler: DDPMScheduler,
        mean: Tensor,
        std: Tensor,
        prompt_embeds: Tensor,
        empty_prompt_embeds: Tensor,
        normalise: bool,
        image_px: int | None = None,
    ) -> None:
        super().__init__()
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the generator's prediction_type is {scheduler.config.prediction_type!r}; "
                f"training needs one of {', '.join(PREDICTION_TYPES)}"
            )
        self.unet, self.vae = unet, vae
        self.scheduler, self.image_noising_scheduler = scheduler, image_noising_scheduler
        self.normalise = normalise
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())
        self.register_buffer("prompt_embeds", prompt_embeds.detach().clone())
        self.register_buffer("empty_prompt_embeds", empty_prompt_embeds.detach().clone())
        self.requires_grad_(False).eval()
        width, channels = unet.config.projection_class_embeddings_input_dim, unet.config.in_channels
        if unet.config.class_embed_type != "projection" or width != 2 * self.embed_dim:
            raise UserError(
                f"the U-Net takes class labels of {width} numbers and the normaliser gives 2 x {self.embed_dim}; "
                "unet/ and image_normalizer/ are of different checkpoints"
            )
        if channels != vae.config.latent_channels:
            raise UserError(
                f"the U-Net takes latents of {channels} channels and the VAE gives {vae.config.latent_channels}"
            )
        if prompt_embeds.shape[-1] != unet.config.cross_attention_dim:
            raise UserError(
                f"the U-Net takes text of width {unet.config.cross_attention_dim} and the text encoder gives "
                f"{prompt_embeds.shape[-1]}; unet/ and text_encoder/ are of different checkpoints"
            )
        self.image_px = int(unet.config.sample_size) * self.vae_factor if image_px is None else image_px
        if self.image_px < 1 or self.image_px % self.vae_factor:
            raise UserError(
                f"the generator's image_px must be a multiple of {self.vae_factor}, the VAE's step, got {self.image_px}"
            )

    @property
    def embed_dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def vae_factor(self) -> int:
        """Pixels of the image along one side of a latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents: 4 x 96 x 96 for SD-2.1 unCLIP at its own 768 px."""
        side = self.image_px // self.vae_factor
        return int(self.vae.config.latent_channels), side, side

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def num_noise_levels(self) -> int:
        return int(self.image_noising_scheduler.config.num_train_timesteps)

    def check_fits(self, embed_dim: int) -> None:
        """Raise a UserError, which says what would fit, unless the generator reads embeddings of width `embed_dim`."""
        if embed_dim != self.embed_dim:
            other = MADE_FOR.get(embed_dim, "no published unCLIP that we know; `finetune --method=align` trains one")
            raise UserError(
                f"the encoder's embedding has {embed_dim} numbers and the generator understands {self.embed_dim}; "
                f"for {embed_dim} there is {other}"
            )

    def prepare(
        self, *, dtype: torch.dtype, checkpointing: bool = False, channels_last: bool = False, compiled: bool = False
    ) -> None:
        """Make training lighter or faster; what is computed stays the same, within the dtype's rounding.

        Args:
            dtype: U-Net and VAE are held in it: float32, or bfloat16 where they do not train. The statistics, the
                noise and the loss stay float32.
            checkpointing: the U-Net's blocks are computed again in the backward pass instead of kept. diffusers
                heeds the switch in evaluation mode too, so a frozen U-Net needs no `train()` and gets no dropout.
            channels_last: memory layout of convolutions that tensor cores prefer.
            compiled: torch.compile, in place, so that parameters keep their names.

        Raises:
            UserError: float16 is asked for.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise UserError(
                f"the generator is held in float32 or bfloat16, got {str(dtype).removeprefix('torch.')}: "
                "SD-2.1's attention overflows in float16"
            )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for part in (self.unet, self.vae):
            nn.Module.to(part, dtype=dtype)  # diffusers' own warns of layers that these have not
            part.to(memory_format=layout)
        self.prompt_embeds, self.empty_prompt_embeds = self.prompt_embeds.to(dtype), self.empty_prompt_embeds.to(dtype)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        if compiled:
            self.unet.compile()

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Replace the normaliser's statistics, both (1, D): `align` measures them on its data."""
        assert mean.shape == self.mean.shape and std.shape == self.std.shape, (mean.shape, std.shape)
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise UserError("the embedding's statistics are not finite, or a deviation is not positive")
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], anywhere -> mean and deviation of the latents, scaled; float32, contiguous.

        The last convolution may leave its channels last, which a file of latents cannot hold.
        """
        images = images.to(self.mean.device, self.prompt_embeds.dtype, non_blocking=True)
        posterior, scale = self.vae.encode(images).latent_dist, self.vae.config.scaling_factor
        mean, std = posterior.mean.float() * scale, posterior.std.float() * scale
        return mean.contiguous(), std.contiguous()

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], anywhere -> latents (B, C, h, w) float32: the posterior's mean, scaled."""
        return self.posterior(images)[0]

    def latents_of(self, batch: Batch, at_once: int | None = None) -> Tensor:
        """The batch's latents on this device: those of the cache, or encoded here, `at_once` images at a time."""
        if batch.images is None:
            assert batch.latents is not None
            return batch.latents.to(self.mean.device, non_blocking=True)
        return torch.cat([self.encode(part) for part in batch.images.split(at_once or len(batch.keys))])

    def vae_sha256(self) -> str:
        """Hash of all that decides the latents of an image: the VAE's weights, its scale, the image's size."""
        scale = torch.tensor([self.vae.config.scaling_factor, self.image_px], dtype=torch.float64)
        return tensors_sha256({"scale": scale} | self.vae.state_dict())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) float32 in [-1, 1]."""
        latents = (latents / self.vae.config.scaling_factor).to(self.prompt_embeds.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

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

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, class_labels: Tensor, prompt_embeds: Tensor | None = None
    ) -> Tensor:
        """Predict the target, (B, C, h, w) float32, from noisy latents at (B,) int64 timesteps under the condition.

        Args:
            class_labels: (B, 2 D), of `class_labels`; zeros drop the condition.
            prompt_embeds: (B, L, C) in place of the prompt's.
        """
        dtype = self.prompt_embeds.dtype
        if prompt_embeds is None:
            prompt_embeds = self.prompt_embeds.expand(len(noisy_latents), -1, -1)
        return self.unet(
            noisy_latents.to(dtype), timesteps, encoder_hidden_states=prompt_embeds, class_labels=class_labels.to(dtype)
        ).sample.float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4)."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net predicts: the noise, or v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0 (arXiv 2202.00512)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)
