"""What an encoder gives: its pooled embedding and, if asked, its patch tokens, with gradient."""

from dataclasses import dataclass
from typing import Any, Literal

from open_clip.timm_model import TimmModel
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
        """pixel_values (B, 3, H, W) -> Features."""
        if self.tokens == "none":
            return Features(pooled=self.visual(pixel_values).float())
        blocks = self._blocks()
        last = self.layer % blocks == blocks - 1
        given: dict[str, Any] = self.visual.forward_intermediates(  # type: ignore[operator]
            pixel_values, indices=[self.layer % blocks], output_fmt="NLC", normalize_intermediates=last
        )
        (tokens,) = given["image_intermediates"]
        if self.tokens == "projected" and getattr(self.visual, "proj", None) is not None:
            tokens = tokens @ self.visual.proj
        return Features(pooled=given["image_features"].float(), tokens=tokens.float())

    def _blocks(self) -> int:
        """How many blocks the transformer has; 0 for a tower of another kind, such as a ResNet."""
        of, blocks = ("trunk", "blocks") if isinstance(self.visual, TimmModel) else ("transformer", "resblocks")
        return len(getattr(getattr(self.visual, of, None), blocks, ()))
