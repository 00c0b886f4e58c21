"""A flow transformer on latents: GenHancer's decoder, small and from scratch (arXiv 2503.19480)."""

from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.decoders.decoder import Cond, NoiseConfig, NoiseSample, guided, shape_in_words
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FlowSize:
    """Shape of a flow transformer from scratch; names as in diffusers' FluxTransformer2DModel.

    Attributes:
        num_layers: blocks in which condition and image have weights of their own.
        num_single_layers: blocks after them, in which they share weights.
        pooled_projection_dim, joint_attention_dim: of the condition's vector, and of its tokens.
    """

    num_layers: int
    num_single_layers: int
    num_attention_heads: int
    attention_head_dim: int
    pooled_projection_dim: int
    joint_attention_dim: int

    def __post_init__(self) -> None:
        at_least(self, 1, *vars(self))


class Flow(LatentDecoder):
    """A rectified flow (arXiv 2209.03003): x_t = (1 - t) x_0 + t noise; the network predicts noise - x_0.

    It reads latents two by two, as FLUX does. FLUX's input for guidance is left out: GenHancer gives it a constant 4,
    which is a bias.

    Attributes:
        transformer: diffusers' FluxTransformer2DModel; it reads a vector and a sequence.

    Raises:
        UserError: the size of the images is not a multiple of twice the VAE's step.
    """

    reads = ("vector", "sequence")

    def __init__(self, transformer: FluxTransformer2DModel, vae: AutoencoderKL, image_px: int) -> None:
        super().__init__(vae, image_px)
        self.transformer = transformer
        self.requires_grad_(False).eval()

    @classmethod
    def scratch(cls, vae: AutoencoderKL, image_px: int, size: FlowSize) -> "Flow":
        """A new one on these latents.

        Raises:
            UserError: diffusers can build no such shape.
        """
        dim = size.attention_head_dim
        side = dim * 7 // 32 * 2  # of a head's numbers, seven sixteenths turn with the row, as many with the column
        with shape_in_words("flow"):
            if dim % 2:
                raise ValueError(f"attention_head_dim must be divisible by 2, got {dim}")
            transformer = FluxTransformer2DModel(
                **asdict(size), in_channels=4 * vae.config.latent_channels, axes_dims_rope=(dim - 2 * side, side, side)
            )
        return cls(transformer, vae, image_px)

    def resize(self, image_px: int) -> None:
        super().resize(image_px)
        if image_px // self.vae_factor % 2:
            raise UserError(
                f"a flow reads latents two by two, so its image_px must be a multiple of {2 * self.vae_factor}, "
                f"got {image_px}"
            )

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
        scale, shape = noise.time_scale, (n, *self.target_shape)
        t = (scale * torch.randn(n, generator=rng)).sigmoid() if scale else torch.rand(n, generator=rng)
        keep = (torch.rand(n, generator=rng) >= (noise.condition_dropout or 0.0)).float()
        return {"t": t, "noise": torch.randn(shape, generator=rng), "keep": keep}

    def at(self, latents: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity noise - x_0, (B, C, h, w) float32, at (B,) times in [0, 1]."""
        dtype, (height, width) = self.transformer.dtype, (side // 2 for side in latents.shape[2:])
        assert cond.vector is not None and cond.sequence is not None
        rows, columns = torch.arange(height, device=latents.device), torch.arange(width, device=latents.device)
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        velocity = self.transformer(
            hidden_states=pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2).to(dtype),
            timestep=t,
            encoder_hidden_states=cond.sequence.to(dtype),
            pooled_projections=cond.vector.to(dtype),
            img_ids=places,
            txt_ids=places.new_zeros(cond.sequence.shape[1], 3),
        ).sample.float()
        return pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (height, width)), 2)

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
