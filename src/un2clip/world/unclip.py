"""A tiny unCLIP for a CLIP: diffusers' own classes, in StableUnCLIPImg2ImgPipeline's layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from un2clip import tracking
from un2clip.config import at_least
from un2clip.decoders import Generator
from un2clip.decoders.assemble import assemble
from un2clip.methods.table import METHODS
from un2clip.models.clip import Clip
from un2clip.models.huggingface import bpe_tokenizer
from un2clip.training.config import PhaseConfig, rate_schedule, single_process
from un2clip.training.loop import Batch, fit
from un2clip.world import orders

NORM_GROUPS = 8  # of the group normalisation; 32 in Stable Diffusion, which is wider


@dataclass(frozen=True, kw_only=True)
class VaeSize:
    """Shape and training of the tiny VAE; names as in diffusers' AutoencoderKL."""

    block_out_channels: tuple[int, ...]
    latent_channels: int
    steps: int
    batch_size: int
    lr: float
    kl_weight: float

    def __post_init__(self) -> None:
        check_channels(self.block_out_channels)
        at_least(self, 1, "latent_channels", "steps", "batch_size")


@dataclass(frozen=True, kw_only=True)
class UnetSize:
    """Shape and training of the tiny generator; names as in diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_head_dim: int
    prediction_type: Literal["epsilon", "v_prediction"]
    batch_size: int
    training: PhaseConfig

    def __post_init__(self) -> None:
        check_channels(self.block_out_channels)
        at_least(self, 1, "layers_per_block", "attention_head_dim", "batch_size")


def check_channels(channels: tuple[int, ...]) -> None:
    """Channels are normalised in groups, so each count is a multiple of their number."""
    if not channels or any(each < 1 or each % NORM_GROUPS for each in channels):
        raise ValueError(f"block_out_channels must be multiples of {NORM_GROUPS}, got {list(channels)}")


def new_vae(size: VaeSize, image_px: int) -> AutoencoderKL:
    """A VAE whose residual blocks start as the identity, which a few hundred steps need (arXiv 1901.09321)."""
    channels = size.block_out_channels
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        latent_channels=size.latent_channels,
        norm_num_groups=NORM_GROUPS,
        sample_size=image_px,
        mid_block_add_attention=False,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return vae


def train_vae(vae: AutoencoderKL, images: Tensor, size: VaeSize) -> None:
    """Reconstruction and a small KL term (arXiv 2112.10752, appendix G), then the scale for unit variance; in place."""
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=size.lr, fused=True)
    schedule = rate_schedule(optimizer, size.steps, size.steps // 20, "cosine")
    progress = tqdm(
        orders(len(images), size.batch_size, size.steps), total=size.steps, unit="step", desc="vae", mininterval=1
    )
    for step, index in enumerate(progress):
        posterior = vae.encode(images[index]).latent_dist
        loss = mse_loss(vae.decode(posterior.sample()).sample, images[index]) + size.kl_weight * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tracking.log_metrics(step, {"vae_loss": loss.item()})
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    with torch.no_grad():
        std = torch.cat([vae.encode(part).latent_dist.mean for part in images[:1024].split(256)]).std().item()
    vae.register_to_config(scaling_factor=1 / std)


def new_unclip(
    clip: Clip, vae: AutoencoderKL, size: UnetSize, mean: Tensor, std: Tensor
) -> StableUnCLIPImg2ImgPipeline:
    """The whole pipeline with an untrained U-Net.

    Args:
        mean, std: (1, D) statistics of the embedding.
    """
    text_cfg = clip.config["model_cfg"]["text_cfg"]
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=text_cfg["width"],
            intermediate_size=text_cfg["width"],
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=text_cfg["context_length"],
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )
    blocks = len(size.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D",) * blocks,
        up_block_types=("UpBlock2D",) * blocks,
        block_out_channels=size.block_out_channels,
        layers_per_block=size.layers_per_block,
        attention_head_dim=size.attention_head_dim,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=text_cfg["width"],
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * clip.embed_dim,
    )
    scheduler = DDIMScheduler(  # the noise schedule is that of Stable Diffusion 2.1 unCLIP
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=size.prediction_type,
        rescale_betas_zero_snr=False,
    )
    return assemble(
        clip,
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        text_encoder=text_encoder,
        tokenizer=bpe_tokenizer(text_cfg["context_length"]),
        mean=mean,
        std=std,
    )


def train_unclip(
    clip: Clip, generator: Generator, pixel_values: Tensor, latents: Tensor, size: UnetSize, seed: int
) -> None:
    """Row `align` of the method table: the generator learns to draw from this CLIP's embeddings; in place."""

    def batches(start: int) -> Iterator[Batch]:
        for index in orders(len(latents), size.batch_size, size.training.steps):
            yield Batch(
                keys=[str(i) for i in index.tolist()],
                pixel_values=pixel_values[index],
                latents=latents[index],
                valid=torch.ones(len(index), dtype=torch.bool, device=latents.device),
            )

    fit(
        clip.model,
        generator,
        METHODS["align"],
        size.training,
        single_process(size.batch_size),
        batches,
        torch.Generator().manual_seed(seed),
        history=[],
        on_step=lambda step, record: tracking.log_metrics(step, {f"unclip_{name}": x for name, x in record.items()}),
    )
