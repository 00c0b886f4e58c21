"""A tiny unCLIP for a CLIP: diffusers' own classes, in StableUnCLIPImg2ImgPipeline's layout."""

from dataclasses import dataclass
from typing import Any, Literal

from diffusers import AutoencoderKL, DDIMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from un2clip.config import at_least
from un2clip.decoders import Unclip
from un2clip.decoders.assemble import assemble
from un2clip.decoders.diffusion import vae_factor
from un2clip.methods.building import new_objective
from un2clip.methods.table import METHODS
from un2clip.models.clip import Clip
from un2clip.models.huggingface import bpe_tokenizer
from un2clip.training.config import PhaseConfig
from un2clip.world.training import Schooling, train_toy
from un2clip.world.vae import NORM_GROUPS, check_channels


@dataclass(frozen=True, kw_only=True)
class UnetSize:
    """Shape of the tiny generators, and their batch; names as in diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_head_dim: int
    cross_attention_dim: int
    prediction_type: Literal["epsilon", "v_prediction"]
    batch_size: int

    def __post_init__(self) -> None:
        check_channels(self.block_out_channels)
        at_least(self, 1, "layers_per_block", "attention_head_dim", "cross_attention_dim", "batch_size")


def new_unet(vae: AutoencoderKL, size: UnetSize, **more: Any) -> UNet2DConditionModel:
    """A U-Net of this size on the latents of a VAE; `more` says its blocks and how it is told."""
    return UNet2DConditionModel(
        sample_size=vae.config.sample_size // vae_factor(vae),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=size.block_out_channels,
        layers_per_block=size.layers_per_block,
        attention_head_dim=size.attention_head_dim,
        norm_num_groups=NORM_GROUPS,
        **more,
    )


def new_schedule(size: UnetSize, steps_offset: int = 0) -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 2.1 and its unCLIP."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=size.prediction_type,
        rescale_betas_zero_snr=False,
        steps_offset=steps_offset,
    )


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
            hidden_size=size.cross_attention_dim,
            intermediate_size=size.cross_attention_dim,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=text_cfg["context_length"],
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )
    unet = new_unet(
        vae,
        size,
        down_block_types=("DownBlock2D",) * len(size.block_out_channels),
        up_block_types=("UpBlock2D",) * len(size.block_out_channels),
        cross_attention_dim=size.cross_attention_dim,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * clip.embed_dim,
    )
    return assemble(
        clip,
        unet=unet,
        vae=vae,
        scheduler=new_schedule(size),
        text_encoder=text_encoder,
        tokenizer=bpe_tokenizer(text_cfg["context_length"]),
        mean=mean,
        std=std,
    )


def train_unclip(
    clip: Clip,
    generator: Unclip,
    pixel_values: Tensor,
    latents: Tensor,
    size: UnetSize,
    phase: PhaseConfig,
    schooling: Schooling,
) -> None:
    """Row `align` of the method table: the generator learns to draw from this CLIP's embeddings; in place."""
    generator.check(phase.noise)
    objective = new_objective(METHODS["align"], clip, generator, {}, seed=schooling.seed)
    data = {"pixel_values": pixel_values, "target": latents}
    train_toy("unclip", objective, "decoder", phase, data, size.batch_size, schooling)
