"""An encoder with the condition and the decoder that give its pictures back: what `reconstruction` measures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from un2clip.evidence.scores import Role
from un2clip.methods.features import Encoder, own_px
from un2clip.models.clip import Clip, finite

if TYPE_CHECKING:  # the start of every other benchmark would wait for diffusers
    from un2clip.decoders.pixels import Pixels
    from un2clip.methods.conditions import Condition


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """From a picture to the decoder's picture of it, without noise.

    Attributes:
        through: half a sentence for the protocol: whose condition and decoder.
    """

    encoder: Encoder
    condition: "Condition"
    decoder: "Pixels"
    through: str

    @property
    def own_px(self) -> int:
        """Side of the images that the encoder was made for."""
        return own_px(self.encoder.visual)

    def side(self, image_px: int) -> int:
        """Side of what the encoder reads of pictures of this side: whole cells."""
        cell = self.encoder.patch_px * self.condition.merge
        return -(-image_px // cell) * cell

    def numbers(self, image_px: int) -> int:
        """How many numbers the decoder is told of a picture of this side."""
        cells = self.side(image_px) // (self.encoder.patch_px * self.condition.merge)
        return cells * cells * self.decoder.channels

    @torch.no_grad()
    def reconstruct(self, images: Tensor, names: list[str]) -> Tensor:
        """Pictures (B, 3, S, S) float32 in [0, 1] -> the same of what is drawn, clamped.

        A side that is no whole number of cells is padded by reflection, on both sides alike, and cut again
        (UniLIP's 256 px: arXiv 2507.23278, its code).

        Args:
            names: of the pictures, for a message.

        Raises:
            UserError: the encoder cannot read this side, or a feature is not finite.
        """
        px, side = images.shape[-1], self.side(images.shape[-1])
        before = (side - px) // 2
        after = side - px - before
        padded = pad(images, (before, after, before, after), mode="reflect") if side > px else images
        features = self.encoder(self._normalised(padded))
        assert features.tokens is not None
        finite(features.tokens, "image", names)
        drawn = self.decoder.paint(self.condition(features, {}), side)
        return ((drawn.clamp(-1, 1) + 1) / 2)[..., before : before + px, before : before + px]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] -> (B, D): the pooled embedding; the tokens' mean where there is none."""
        if images.shape[-1] != self.own_px:
            images = interpolate(images, size=(self.own_px, self.own_px), mode="bicubic", antialias=True).clamp(0, 1)
        found = self.encoder(self._normalised(images))
        if found.pooled is not None:
            return found.pooled
        assert found.tokens is not None
        return found.tokens.mean(dim=1)

    def _normalised(self, images: Tensor) -> Tensor:
        cfg: Any = self.encoder.visual.preprocess_cfg
        mean, std = (torch.tensor(cfg[name], device=images.device)[:, None, None] for name in ("mean", "std"))
        return (images - mean) / std


def open_autoencoder(clip: Clip, role: Role, encoder: Path) -> Autoencoder:
    """The encoder with what was trained to draw of it.

    Args:
        clip: the tuned one, or the reference.
        role: which of the two it is. The reference has the condition and the decoder as they were before the encoder
            moved, where the training kept them, and else those of the tuned one.
        encoder: folder of the tuned checkpoint.

    Raises:
        UserError: there is no such condition or decoder; see load_parts.
    """
    from un2clip.decoders.pixels import Pixels
    from un2clip.methods.kept import ALIGNED, load_parts

    kept = (encoder / ALIGNED).is_dir()
    tower = Encoder(clip.model.visual, "raw")
    with torch.no_grad():
        features = tower(torch.zeros(1, 3, *clip.image_size, device=clip.device))
    folder = encoder / ALIGNED if kept and role == "reference" else encoder
    condition, decoder = load_parts(folder, features, clip.device)
    assert isinstance(decoder, Pixels)
    through = "each encoder through the condition and decoder trained for it"
    if not kept:
        through = "both encoders through the condition and decoder of the tuned one"
    return Autoencoder(encoder=tower, condition=condition.eval(), decoder=decoder, through=through)
