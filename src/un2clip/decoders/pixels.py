"""A pixel decoder: UniLIP's, the decoder half of DC-AE, from a map of the encoder's patches to an image."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from un2clip.config import at_least
from un2clip.decoders.decoder import Cond, Decoder, NoiseSample, shape_in_words
from un2clip.decoders.perceptual import Perceptual, PerceptualConfig, in_words, open_perceptual
from un2clip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PixelsSize:
    """Shape of a pixel decoder from scratch; names as in diffusers' AutoencoderDC."""

    latent_channels: int
    decoder_block_out_channels: tuple[int, ...]
    decoder_layers_per_block: tuple[int, ...]

    def __post_init__(self) -> None:
        at_least(self, 1, "latent_channels")
        channels = self.decoder_block_out_channels
        if not channels or min(channels) < 1:
            raise ValueError(f"decoder_block_out_channels must be positive numbers, got {list(channels)}")
        if len(channels) != len(self.decoder_layers_per_block):
            raise ValueError("decoder_layers_per_block must have a number for each of decoder_block_out_channels")
        if min(self.decoder_layers_per_block) < 0:
            raise ValueError(f"decoder_layers_per_block must be at least 0, got {list(self.decoder_layers_per_block)}")


class Pixels(Decoder):
    """DC-AE's decoder (arXiv 2410.10733) as UniLIP uses it (arXiv 2507.23278): without noise, the target is pixels.

    Attributes:
        autoencoder: diffusers' AutoencoderDC; of it the decoder alone is used.
        image_px: side of the images that are held against what it draws, which is resized to it.
        perceptual: further terms of its loss; None for none.
    """

    reads = ("spatial",)
    random = False
    as_read = True

    def __init__(self, autoencoder: AutoencoderDC, image_px: int) -> None:
        super().__init__()
        self.decoder, self.config, self.image_px = autoencoder.decoder, dict(autoencoder.config), image_px
        self.perceptual: Perceptual | None = None
        self.requires_grad_(False).eval()

    @classmethod
    def scratch(cls, image_px: int, size: PixelsSize) -> "Pixels":
        """A new one, for images of this side.

        Raises:
            UserError: diffusers can build no such shape.
        """
        blocks = size.decoder_block_out_channels  # the encoder is thrown away: as small as its decoder lets it be
        stages = {"qkv_multiscales": ((),) * len(blocks)}
        encoder = {"block_out_channels": blocks, "layers_per_block": (1,) * len(blocks), **stages}
        names = {f"encoder_{name}": value for name, value in encoder.items()}
        config = asdict(size) | names | {"decoder_qkv_multiscales": stages["qkv_multiscales"]}
        with shape_in_words("pixels"):
            with torch.device("meta"):  # which only asks for shapes
                AutoencoderDC(**config).decoder(torch.empty(1, size.latent_channels, 1, 1))
            return cls(AutoencoderDC(**config), image_px)

    def see(self, backbones: Path, config: PerceptualConfig) -> str:
        """Take the perceptual networks that are there; what the loss is without, as a sentence, "" for nothing."""
        self.perceptual, absent = open_perceptual(backbones, config)
        self.to(self.device)
        return in_words(absent) if absent else ""

    @property
    def network(self) -> nn.Module:
        return self.decoder

    @property
    def channels(self) -> int:
        """Of the map that it reads."""
        return int(self.config["latent_channels"])

    @property
    def stride(self) -> int:
        """Pixels a side that it draws of one cell of the map."""
        return int(2 ** (len(self.config["decoder_block_out_channels"]) - 1))

    def check_cells(self, side: int) -> None:
        """Refuse a map of so many cells a side that would be drawn smaller than the images, and stretched."""
        if (drawn := side * self.stride) < self.image_px:
            raise UserError(
                f"the pixel decoder draws {self.stride} px of a cell, {drawn} of {self.image_px} px of {side} cells: "
                "that would be a stretched picture; merge fewer patches (finetune.conditions.spatial.merge), or take a "
                "decoder with one block more"
            )

    @property
    def target_shape(self) -> tuple[int, int, int]:
        return 3, self.image_px, self.image_px

    def target(self, batch: dict[str, Any], at_once: int | None = None) -> Tensor:
        """The images, (B, 3, S, S) float32 in [-1, 1]."""
        if "images" not in batch:
            raise UserError("a pixel decoder is held against images, and this batch has cached latents alone")
        images: Tensor = batch["images"].to(self.device, non_blocking=True)
        return images

    def predict(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> Tensor:
        """`cond.spatial` (B, C, h, w) -> images (B, 3, S, S), of the target's side."""
        return self.paint(cond, target.shape[-1])

    def paint(self, cond: Cond, image_px: int) -> Tensor:
        """`cond.spatial` (B, C, h, w) -> images (B, 3, image_px, image_px), resized where its stride overshoots."""
        assert cond.spatial is not None
        drawn = self.decoder(cond.spatial.to(next(self.decoder.parameters()).dtype)).float()
        size = (image_px, image_px)
        return drawn if drawn.shape[-2:] == size else nn.functional.interpolate(drawn, size=size, mode="bilinear")

    def loss(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """Mean squared error of the pixels, as of images in [0, 1]; and the perceptual terms, where it has networks."""
        drawn = self.predict(target, cond, noise_sample)
        terms = {"pixel_loss": ((drawn - target) / 2).square().mean(dim=(1, 2, 3))}
        return terms | (self.perceptual(drawn, target) if self.perceptual is not None else {})

    @torch.no_grad()
    def sample(
        self, cond: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float, noise_level: int
    ) -> Tensor:
        """As Decoder.sample; nothing is random."""
        return self.paint(cond, self.image_px).clamp(-1, 1)
