"""What an encoder gives: its pooled embedding and, if asked, its patch tokens, with gradient."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from un2clip.errors import UserError

#: none; raw: of the tower's own width; projected: through CLIP's projection into the joint width, where there is one
#: (an attention pool such as SigLIP's has none).
Tokens = Literal["none", "raw", "projected"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """One batch through an encoder.

    Attributes:
        pooled: (B, D) float32, not L2-normalised; None for a tower without a pooled embedding (InternViT).
        tokens: (B, N, C) float32, the patches in reading order; None unless asked for.
    """

    pooled: Tensor | None
    tokens: Tensor | None = None


class Encoder(nn.Module):
    """An image tower of open_clip's, with its patch tokens beside the pooled embedding.

    Args:
        visual: a VisionTransformer or a TimmModel; its own forward gives the pooled embedding.
        tokens: which patch tokens.
        layer: of the tokens: -1 the last block's after the final norm, -2 the one before (as LLaVA reads), ...

    Raises:
        UserError: the tower has no patch tokens (it is no transformer), or no such layer.
    """

    def __init__(self, visual: nn.Module, tokens: Tokens = "none", layer: int = -1) -> None:
        super().__init__()
        self.visual, self.tokens, self.layer = visual, tokens, layer
        if tokens != "none" and not -self._blocks() <= layer < 0:
            blocks = f"{self._blocks()} blocks, and none is layer {layer}" if self._blocks() else "no patch tokens"
            raise UserError(f"{type(visual).__name__} has {blocks}")

    def forward(self, pixel_values: Tensor) -> Features:
        """pixel_values (B, 3, H, W) -> Features; square images of another side than the tower's own, where `at` can."""
        visual = self.at(pixel_values.shape[-1])
        if _tokens_only(visual):
            return Features(pooled=None, tokens=visual(pixel_values).float())
        if self.tokens == "none":
            return Features(pooled=visual(pixel_values).float())
        blocks = self._blocks()
        last = self.layer % blocks == blocks - 1
        given: dict[str, Any] = visual.forward_intermediates(
            pixel_values, indices=[self.layer % blocks], output_fmt="NLC", normalize_intermediates=last
        )
        (tokens,) = given["image_intermediates"]
        if self.tokens == "projected" and getattr(self.visual, "proj", None) is not None:
            tokens = tokens @ self.visual.proj
        return Features(pooled=given["image_features"].float(), tokens=tokens.float())

    @property
    def patch_px(self) -> int:
        """Side of what one token stands for."""
        visual: Any = self.visual
        size = visual.trunk.patch_embed.patch_size if isinstance(visual, TimmModel) else visual.patch_size
        return int(size[0])

    def at(self, image_px: int) -> Any:
        """The tower as it reads square images of this side: itself, or one that shares all but its positions.

        Positions are interpolated, and gradients flow through that to the tower's own.

        Raises:
            UserError: the tower cannot read this side.
        """
        visual: Any = self.visual
        if image_px == own_px(visual) or (_tokens_only(visual) and image_px % self.patch_px == 0):
            return visual
        if not isinstance(visual, VisionTransformer) and not _tokens_only(visual):
            raise UserError(
                f"{type(visual).__name__} reads images of {own_px(visual)} px alone, and was asked for {image_px}"
            )
        if image_px % self.patch_px:
            raise UserError(f"a side of {image_px} px is not a multiple of the encoder's patch of {self.patch_px} px")
        other = copy.copy(visual)
        other._parameters = {name: value for name, value in visual._parameters.items() if name != POSITIONS}
        other.__dict__[POSITIONS] = interpolated(visual.positional_embedding, image_px // self.patch_px)
        return other

    def _blocks(self) -> int:
        """How many blocks the transformer has; 0 for a tower of another kind, such as a ResNet."""
        if _tokens_only(self.visual):
            return 1  # of which only the last gives tokens: the connector's
        of, blocks = ("trunk", "blocks") if isinstance(self.visual, TimmModel) else ("transformer", "resblocks")
        return len(getattr(getattr(self.visual, of, None), blocks, ()))


POSITIONS = "positional_embedding"


def interpolated(positions: Tensor, side: int) -> Tensor:
    """Positions (1 + own^2, C) -> (1 + side^2, C), as open_clip resizes them when it loads; the class token's stays."""
    first, rest = positions[:1], positions[1:]
    own = math.isqrt(len(rest))
    grid = rest.T.unflatten(1, (own, own))[None]
    resized = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resized[0].flatten(1).T])


def _tokens_only(visual: Any) -> bool:
    """Whether a tower gives tokens and no pooled embedding: InternVL's (models/internvl.py)."""
    return bool(getattr(visual, "tokens_only", False))


def own_px(visual: Any) -> int:
    """Side of the images that a tower was made for."""
    size = visual.image_size
    return int(size) if isinstance(size, int) else int(size[0])
