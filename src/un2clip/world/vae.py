"""A tiny VAE: diffusers' own class, trained on the world's images."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from un2clip.config import at_least
from un2clip.datasets.loader import Batch
from un2clip.decoders import NoiseConfig, NoiseSample
from un2clip.methods.objective import Objective
from un2clip.training.config import PhaseConfig
from un2clip.world.training import Schooling, train_toy

NORM_GROUPS = 8  # of the group normalisation; 32 in Stable Diffusion, which is wider
_SCALED_BY = 1024  # images whose latents decide the scale


@dataclass(frozen=True, kw_only=True)
class VaeSize:
    """Shape of the tiny VAE, and its batch; names as in diffusers' AutoencoderKL."""

    block_out_channels: tuple[int, ...]
    latent_channels: int
    batch_size: int
    kl_weight: float

    def __post_init__(self) -> None:
        check_channels(self.block_out_channels)
        at_least(self, 1, "latent_channels", "batch_size")


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


class Autoencoding(Objective):
    """Reconstruction through the posterior's noise and a small KL term (arXiv 2112.10752, appendix G)."""

    def __init__(self, vae: AutoencoderKL, kl_weight: float) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def parts(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def draw(self, batch: Batch, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        side = self.vae.config.sample_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return {"noise": torch.randn((n, self.vae.config.latent_channels, side, side), generator=rng)}

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        posterior = self.vae.encode(batch["images"]).latent_dist
        drawn = self.vae.decode(posterior.mean + posterior.std * noise_sample["noise"]).sample
        reconstruction = (drawn - batch["images"]).square().mean(dim=(1, 2, 3))
        return {"loss": reconstruction + self.kl_weight * posterior.kl(), "reconstruction": reconstruction}


def train_vae(vae: AutoencoderKL, images: Tensor, size: VaeSize, phase: PhaseConfig, schooling: Schooling) -> None:
    """Train it on the whole world, in place; then set the scale that gives its latents unit variance."""
    train_toy("vae", Autoencoding(vae, size.kl_weight), "vae", phase, {"images": images}, size.batch_size, schooling)
    with torch.no_grad():
        parts = images[:_SCALED_BY].split(256)
        std = torch.cat([vae.encode(part).latent_dist.mean for part in parts]).std().item()
    vae.register_to_config(scaling_factor=1 / std)
