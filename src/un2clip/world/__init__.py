"""The laptop world: its scenes, what is written of them, its toy CLIP and toy unCLIP.

All that is random here comes from torch's global state, which the stage `backbones` seeds.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def orders(total: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Indices of `steps` full batches, each epoch in an order of its own."""
    done = 0
    while True:
        for index in torch.randperm(total)[: total // batch_size * batch_size].split(batch_size):
            if done == steps:
                return
            yield index
            done += 1
