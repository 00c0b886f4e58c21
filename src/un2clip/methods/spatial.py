"""From patch tokens to the map that a pixel decoder reads: UniLIP's connector and bottleneck (arXiv 2507.23278)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from un2clip.config import at_least
from un2clip.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """Shape of `spatial`.

    Attributes:
        merge: patches a side that become one cell; 1 where an encoder's own connector has merged them.
        blocks: residual perceptrons.
    """

    merge: int
    blocks: int

    def __post_init__(self) -> None:
        at_least(self, 1, "merge")
        at_least(self, 0, "blocks")


class Cells(nn.Module):
    """Patch tokens (B, N, C) in reading order -> a map (B, channels, h, w), h = w = sqrt(N) / merge.

    Where patches are merged, as pixel_unshuffle does it, a perceptron connects them first, as InternVL's `mlp1` does,
    which UniLIP's encoder has. Then come residual perceptrons and a bottleneck. Linear layers begin with a deviation of
    0.02, as in its code.
    """

    def __init__(self, width: int, channels: int, config: SpatialConfig) -> None:
        super().__init__()
        self.merge, wide = config.merge, width * config.merge**2
        self.connector = _perceptron(wide, width) if config.merge > 1 else nn.Identity()
        self.blocks = nn.ModuleList(_perceptron(width, width) for _ in range(config.blocks))
        self.bottleneck = _perceptron(width, channels)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        check_square(tokens.shape[1], self.merge)
        side = math.isqrt(tokens.shape[1])
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        cells = self.connector(pixel_unshuffle(grid, self.merge).movedim(1, -1))
        for block in self.blocks:
            cells = cells + block(cells)
        told: Tensor = self.bottleneck(cells).movedim(-1, 1)
        return told


def check_square(patches: int, merge: int) -> int:
    """Cells a side.

    Raises:
        UserError: the patches are no square, or cannot be merged so.
    """
    side = math.isqrt(patches)
    if side**2 != patches or side % merge:
        raise UserError(
            f"the spatial condition merges {merge} by {merge} patches into a cell, and the encoder gives {patches}; "
            "finetune.conditions.spatial.merge must divide the side of their square"
        )
    return side // merge


def _perceptron(width: int, into: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, into), nn.GELU(), nn.Linear(into, into))
