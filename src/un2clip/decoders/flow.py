"""A flow transformer on latents: GenHancer's decoder, small and from scratch (arXiv 2503.19480)."""

from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.decoders.decoder import Cond, NoiseConfig, NoiseSample, guided, shape_in_words
from un2clip.decoders.diffusion import LatentDecoder, vae_factor
from un2clip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FlowSize:
    """Shape of a flow transformer from scratch; names as in diffusers' SD3Transformer2DModel.

    Attributes:
        pooled_projection_dim, joint_attention_dim: of the condition's vector, and of its tokens.
    """

    patch_size: int
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    pooled_projection_dim: int
    joint_attention_dim: int

    def __post_init__(self) -> None:
        at_least(self, 1, *vars(self))


class Flow(LatentDecoder):
    """A rectified flow (arXiv 2209.03003): x_t = (1 - t) x_0 + t noise; the network predicts noise - x_0.

    t = sigmoid(N(0, 1)), the best scale of GenHancer's table; the numbers' timesteps are not used.

    Attributes:
        transformer: diffusers' SD3Transformer2DModel; it reads a vector and a sequence.
    """

    T = 1000  # what the transformer's embedding of time is scaled to

    def __init__(self, transformer: SD3Transformer2DModel, vae: AutoencoderKL, image_px: int) -> None:
        super().__init__(vae, image_px)
        self.transformer = transformer
        self.requires_grad_(False).eval()

    @classmethod
    def scratch(cls, vae: AutoencoderKL, image_px: int, size: FlowSize) -> "Flow":
        """A new one on these latents.

        Raises:
            UserError: diffusers can build no such shape.
        """
        channels, side = int(vae.config.latent_channels), image_px // vae_factor(vae)
        fitting = {"sample_size": side, "in_channels": channels, "out_channels": channels, "pos_embed_max_size": side}
        width = size.num_attention_heads * size.attention_head_dim
        with shape_in_words("flow"):
            return cls(SD3Transformer2DModel(**asdict(size), caption_projection_dim=width, **fitting), vae, image_px)

    def resize(self, image_px: int) -> None:
        largest = self.transformer.config.pos_embed_max_size * self.vae_factor if hasattr(self, "transformer") else None
        if largest and image_px > largest:
            raise UserError(f"this flow's positions reach to an image_px of {largest}, got {image_px}")
        super().resize(image_px)

    @property
    def network(self) -> nn.Module:
        return self.transformer

    @property
    def widths(self) -> tuple[int, int]:
        """Of the condition's vector, and of its tokens."""
        config = self.transformer.config
        return int(config.pooled_projection_dim), int(config.joint_attention_dim)

    def draw(self, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        """t (n,) in (0, 1), noise (n, C, h, w), keep (n,) float."""
        t, shape = torch.randn(n, generator=rng).sigmoid(), (n, *self.target_shape)
        keep = (torch.rand(n, generator=rng) >= (noise.condition_dropout or 0.0)).float()
        return {"t": t, "noise": torch.randn(shape, generator=rng), "keep": keep}

    def at(self, latents: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity noise - x_0, (B, C, h, w) float32, at (B,) times in [0, 1]."""
        dtype = self.transformer.dtype
        assert cond.vector is not None and cond.sequence is not None
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=self.T * t,
            encoder_hidden_states=cond.sequence.to(dtype),
            pooled_projections=cond.vector.to(dtype),
        ).sample.float()

    def predict(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> Tensor:
        t, keep = noise_sample["t"], noise_sample["keep"]
        noisy = torch.lerp(target, noise_sample["noise"], t[:, None, None, None])
        return self.at(noisy, t, _scaled(cond, keep))

    def loss(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """Mean squared error against noise - x_0 (arXiv 2503.19480, eq. 2)."""
        velocity = self.predict(target, cond, noise_sample)
        return {"flow_loss": (velocity - (noise_sample["noise"] - target)).square().mean(dim=(1, 2, 3))}

    @torch.no_grad()
    def sample(
        self, cond: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float, noise_level: int
    ) -> Tensor:
        """As Decoder.sample, by Euler's steps from noise to image; the unconditional branch has zeros."""
        latents = torch.randn((len(cond), *self.target_shape), generator=rng).to(self.device)
        nothing = _scaled(cond, torch.zeros(len(cond), device=self.device))
        times = torch.linspace(1, 0, sampling_steps + 1, device=self.device)
        for now, after in tqdm(zip(times, times[1:], strict=False), total=sampling_steps, unit="step", desc="draw"):
            latents = latents + (after - now) * guided(self.at, latents, now, cond, nothing, guidance_scale)
        return self.decode(latents)


def _scaled(cond: Cond, factor: Tensor) -> Cond:
    """Vector and sequence times a factor (B,)."""
    assert cond.vector is not None and cond.sequence is not None
    return Cond(vector=cond.vector * factor[:, None], sequence=cond.sequence * factor[:, None, None])
