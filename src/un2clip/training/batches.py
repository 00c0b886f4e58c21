"""The local batches of a training: read ahead, on the device, each with what its decoder makes of it."""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from un2clip import devices
from un2clip.datasets import loader
from un2clip.datasets.loader import Batch, Reader

CORRUPT_LISTED = 10  # lines on stderr; the count is in lineage.json


def local_batches(
    reader: Reader,
    target: Callable[[Batch], Tensor],
    *,
    batch_size: int,
    seed: int,
    step: int,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """This process's part of the batch of every step from `step` on; an order that the seed decides.

    Args:
        target: what a batch's loss is held against; it becomes the batch's `target`.
        batch_size: of all processes together.
        workers: processes that read images, beside this one.
    """
    rank, world = devices.rank(), devices.world_size()
    mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    indices = loader.shuffled(reader.sizes, seed, start=step * batch_size)
    for batch in reported(loader.read(reader, loader.batched(indices, batch_size, mine), workers)):
        yield loader.to_device(batch, device) | {"target": target(batch)}


def reported(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; the first samples that are not valid are named on stderr."""
    listed = 0
    for batch in batches:
        for key, valid in zip(batch["keys"], batch["valid"].tolist(), strict=True):
            listed += not valid
            if not valid and listed <= CORRUPT_LISTED:
                tqdm.write(f"un2clip: left out: {key}", file=sys.stderr)
        yield batch
