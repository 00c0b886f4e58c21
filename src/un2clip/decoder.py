"""The generator: an unCLIP that draws an image from a CLIP image embedding.

It is read from the directory layout of diffusers' StableUnCLIPImg2ImgPipeline and does what that pipeline
does, but with gradients, with a noise level for each sample, and with the embedding given.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from un2clip.config import UserError

CPU = torch.device("cpu")
PREDICTION_TYPES = ("epsilon", "v_prediction")


class Generator(nn.Module):
    """U-Net, VAE, noise augmentation and normaliser of an unCLIP.

    The normaliser's statistics are buffers here: diffusers holds them as parameters and makes them anew,
    trainable again, at every `.to()`. Training needs DDPM's add_noise and get_velocity whatever sampler
    the checkpoint ships.

    Attributes:
        unet: predicts epsilon or v from noisy latents; `class_labels` carries the embedding.
        vae: image in [-1, 1] <-> latents; always frozen.
        scheduler: noise schedule of the latents.
        image_noising_scheduler: noise schedule of the embedding.
        mean, std: (1, D) statistics of the embedding.
        prompt_embeds: (1, L, C) hidden states of the empty prompt.
    """

    mean: Tensor
    std: Tensor
    prompt_embeds: Tensor

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
    ) -> None:
        super().__init__()
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the generator's prediction_type is {scheduler.config.prediction_type!r}; "
                f"training needs one of {', '.join(PREDICTION_TYPES)}"
            )
        self.unet, self.vae = unet, vae
        self.scheduler, self.image_noising_scheduler = scheduler, image_noising_scheduler
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())
        self.register_buffer("prompt_embeds", prompt_embeds.detach().clone())
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def image_px(self) -> int:
        """Side of the square images that the generator draws."""
        return int(self.unet.config.sample_size) * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def num_noise_levels(self) -> int:
        return int(self.image_noising_scheduler.config.num_train_timesteps)

    def check_fits(self, embed_dim: int) -> None:
        """Raise a UserError unless the generator understands embeddings of width `embed_dim`."""
        if embed_dim != self.embed_dim:
            raise UserError(
                f"the encoder's embedding has {embed_dim} numbers and the generator understands {self.embed_dim}; "
                f"pair it with a generator made for it (768: unCLIP-L, 1024: unCLIP-H)"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], anywhere -> latents (B, C, h, w): the posterior's mean, scaled."""
        images = images.to(self.mean.device, non_blocking=True)
        return self.vae.encode(images).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1]."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)

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
        scaled = (image_embeds - self.mean) / self.std
        noised = self.image_noising_scheduler.add_noise(scaled, noise, noise_level) * self.std + self.mean
        level = get_timestep_embedding(noise_level, self.embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([noised, level.to(noised.dtype)], dim=1)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        """Predict the target, (B, C, h, w), from noisy latents at (B,) int64 timesteps under the condition."""
        prompt = self.prompt_embeds.expand(len(noisy_latents), -1, -1)
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=prompt, class_labels=class_labels).sample

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise (arXiv 2006.11239, eq. 4)."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net predicts: the noise, or v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0 (arXiv 2202.00512)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)


def load_generator(folder: Path, device: torch.device = CPU) -> Generator:
    """Load a generator from a directory in StableUnCLIPImg2ImgPipeline's layout, frozen, fp32, safetensors only.

    Raises:
        UserError: a part is missing or damaged, or the parts do not fit each other.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} is not a generator in StableUnCLIPImg2ImgPipeline's layout: it has no model_index.json"
        )
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
        normalizer = StableUnCLIPImageNormalizer.from_pretrained(
            folder, subfolder="image_normalizer", use_safetensors=True
        )
        generator = Generator(
            unet=unet,
            vae=AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True),
            scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
            image_noising_scheduler=DDPMScheduler.from_pretrained(folder, subfolder="image_noising_scheduler"),
            mean=normalizer.mean,
            std=normalizer.std,
            prompt_embeds=_empty_prompt(folder),
        )
    except OSError as error:
        raise UserError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    width = unet.config.projection_class_embeddings_input_dim
    if width != 2 * generator.embed_dim:
        raise UserError(
            f"{folder}: the U-Net takes class labels of {width} numbers and the normaliser gives "
            f"2 x {generator.embed_dim}; unet/ and image_normalizer/ are of different checkpoints"
        )
    return generator.to(device)


@torch.no_grad()
def _empty_prompt(folder: Path) -> Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True).eval()
    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids)[0]


def save_generator(generator: Generator, like: Path, folder: Path) -> None:
    """Write a trained generator: the directory `like` (which may be `folder` itself), with this U-Net."""
    if folder != like:
        shutil.copytree(like, folder, dirs_exist_ok=True)
    generator.unet.register_to_config(_name_or_path="")  # diffusers would write where it was loaded from
    generator.unet.save_pretrained(folder / "unet", safe_serialization=True)
