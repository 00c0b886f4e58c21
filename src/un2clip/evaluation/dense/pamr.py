"""PAMR (arXiv 2005.08104): let each pixel's similarities follow those of pixels around it that look like it.

NACLIP's headline numbers have ten steps of it. It needs the picture and nothing that was trained.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Distances of the eight neighbours in pixels, as NACLIP takes them; and the paper's sharpness.
DISTANCES = (8, 16)
SHARPNESS = 0.1


def refine(similarity: Tensor, picture: Tensor, steps: int) -> Tensor:
    """Similarities (Q, H, W), each step a mean over neighbours, weighted by how alike they look in `picture` (3, H, W).

    A neighbour weighs exp(-|difference| / (0.1 x deviation around here)), averaged over the channels before the
    exponential, and all neighbours together weigh 1. Beyond the edge the picture goes on as its last pixel.
    """
    offsets = [(d * i, d * j) for d in DISTANCES for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    around = torch.stack(list(_shifted(picture, offsets)))
    spread = torch.cat([around, picture.expand(len(DISTANCES), *picture.shape)]).std(0)
    weights = (-(around - picture).abs() / (1e-8 + SHARPNESS * spread)).mean(1).softmax(0)
    for _ in range(steps):
        found = torch.zeros_like(similarity)
        for weight, neighbour in zip(weights, _shifted(similarity, offsets), strict=True):
            found.addcmul_(neighbour, weight)
        similarity = found
    return similarity


def _shifted(x: Tensor, offsets: list[tuple[int, int]]) -> Iterator[Tensor]:
    """x (C, H, W) moved by each offset, one at a time: all of them at once would be sixteen times the memory."""
    margin, (height, width) = max(DISTANCES), x.shape[-2:]
    wide = pad(x[None], [margin] * 4, mode="replicate")[0]
    for down, across in offsets:
        yield wide[:, margin + down : margin + down + height, margin + across : margin + across + width]
