"""Batches for training and validation: each image in two views, in an order that a seed decides.

An epoch goes through every shard once, in a permuted order, and through each shard's samples once, in a
permuted order: reading stays sequential, every sample is seen exactly once, and no state is hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from un2clip.config import UserError
from un2clip.datasets.shards import read_index, samples

View = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of images in two views.

    Attributes:
        keys: the samples' names, for messages.
        pixel_values: (B, 3, H, W) float32, as the encoder wants it.
        images: (B, 3, S, S) float32 in [-1, 1], as the generator's VAE wants it.
    """

    keys: list[str]
    pixel_values: Tensor
    images: Tensor


def generator_view(image_px: int) -> View:
    """PIL image -> (3, image_px, image_px) float32 in [-1, 1]: cropped as the encoder's own view is."""
    return v2.Compose(
        [
            v2.Resize(image_px, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(image_px),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )


def count(shards: Path, split: str, at_least: int) -> int:
    """Samples in a split, refused when there are fewer than one batch."""
    found = read_index(shards).count(split)
    if found < at_least:
        raise UserError(
            f"{shards}/{split} holds {found} samples, fewer than one batch of {at_least}; "
            "lower batch_size or add images"
        )
    return found


def epoch(
    shards: Path, split: str, encoder_view: View, image_view: View, batch_size: int, seed: int | None
) -> Iterator[Batch]:
    """All samples of a split once, in batches; the last one may be smaller.

    Args:
        seed: decides the order; None keeps the order of the shards.
    """
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    names = [shard.name for shard in read_index(shards).splits[split]]
    pending: list[tuple[str, Tensor, Tensor]] = []
    for i in range(len(names)) if rng is None else torch.randperm(len(names), generator=rng).tolist():
        shard = [(sample.key, sample.image) for sample in samples(shards / split, names[i])]
        for j in range(len(shard)) if rng is None else torch.randperm(len(shard), generator=rng).tolist():
            key, image = shard[j]
            pending.append((key, encoder_view(image), image_view(image)))
            if len(pending) == batch_size:
                yield _stack(pending)
                pending = []
    if pending:
        yield _stack(pending)


def forever(
    shards: Path, split: str, encoder_view: View, image_view: View, batch_size: int, seed: int
) -> Iterator[Batch]:
    """Full batches, epoch after epoch, each in an order of its own; an epoch's incomplete batch is left out."""
    number = 0
    while True:
        for batch in epoch(shards, split, encoder_view, image_view, batch_size, seed=seed * 1_000_003 + number):
            if len(batch.keys) == batch_size:
                yield batch
        number += 1


def _stack(pending: list[tuple[str, Tensor, Tensor]]) -> Batch:
    keys, pixel_values, images = zip(*pending, strict=True)
    return Batch(keys=list(keys), pixel_values=torch.stack(pixel_values), images=torch.stack(images))
