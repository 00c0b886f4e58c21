"""The projector of the paper's ablation: a linear map between the encoder and the generator, thrown away at the end.

un2CLIP itself has none, which is its difference to DIVA (arXiv 2407.20171): an unCLIP understands CLIP's own embedding.
The ablation of arXiv 2505.24517 puts one in, random or the identity at the start. Presumed, since the text at hand does
not say: it has a bias, which starts at 0 in the identity; it trains at the encoder's rate, as DIVA's does; and it is
left out when the encoder is measured.
"""

import math
from typing import Literal

import torch
from torch import nn

Init = Literal["none", "random", "identity"]


def new_projector(init: Init, embed_dim: int, seed: int) -> nn.Module:
    """(B, D) -> (B, D): what the generator gets of the embedding.

    Args:
        init: none: no map and nothing to train. random: as torch.nn.Linear starts, uniform within -+ 1/sqrt(D).
            identity: gives its input back, bit for bit.
        embed_dim: D.
        seed: of the random start; torch's own random state is left alone.
    """
    if init == "none":
        return nn.Identity()
    projector = nn.utils.skip_init(nn.Linear, embed_dim, embed_dim)
    if init == "identity":
        nn.init.eye_(projector.weight)
        nn.init.zeros_(projector.bias)
    else:
        rng, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(embed_dim)
        for parameter in (projector.weight, projector.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return projector
