"""Batches for training and validation: each image in two views, in an order that a seed decides.

The order is a formula. An epoch goes through the shards in a permuted order, and through each shard's samples
in a permuted order; epoch follows epoch without a gap. Step k of a training takes the k-th `batch_size` samples
of it, of which each process takes its share. So every sample is seen exactly once an epoch on any number of
processes and workers, and a training goes on at any step without reading what came before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from un2clip.datasets.latents import CachedLatents
from un2clip.datasets.random_access import CorruptSample, read_image
from un2clip.datasets.shards import Shard, read_index
from un2clip.errors import UserError

View = Callable[[Image.Image], Tensor]
SampleIndex = tuple[int, int]  # number of the shard, number of the sample in it


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of images in two views.

    Attributes:
        keys: the samples' names, for messages; a reason where one is corrupt.
        pixel_values: (B, 3, H, W) float32, as the encoder wants it.
        images: (B, 3, S, S) float32 in [-1, 1], as the generator's VAE wants it; None where latents are cached.
        latents: (B, C, h, w), scaled, from the cache; or None.
        valid: (B,) bool; a sample that could not be read is zeros and must not count.
    """

    keys: list[str]
    pixel_values: Tensor
    images: Tensor | None
    latents: Tensor | None
    valid: Tensor

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU reads beside its work; DataLoader calls this where there is one."""
        pinned: dict[str, Any] = {
            name: x.pin_memory() if isinstance(x, Tensor) else x for name, x in vars(self).items()
        }
        return Batch(**pinned)


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


@dataclass(frozen=True, kw_only=True)
class Reader(Dataset[Batch]):
    """One sample of a split in its views, as a batch of one.

    Attributes:
        folder: the split's tars.
        listed: its shards, as the index lists them.
        encoder_view: of CLIP.
        image_view: of the VAE; not made where latents are cached.
        cached: the VAE's latents, or None.
    """

    folder: Path
    listed: tuple[Shard, ...]
    encoder_view: View
    image_view: View
    cached: CachedLatents | None

    @property
    def sizes(self) -> list[int]:
        """Number of samples in each shard."""
        return [shard.samples for shard in self.listed]

    def __getitem__(self, index: SampleIndex) -> Batch:
        shard, number = index
        tar = self.folder / self.listed[shard].name
        try:
            key, image = read_image(tar, number)
            valid = True
        except CorruptSample as error:
            key, image, valid = str(error), Image.new("RGB", (1, 1)), False
        latents = None if self.cached is None else self.cached.read(tar, number)[None]
        return Batch(
            keys=[key],
            pixel_values=self.encoder_view(image)[None] * valid,
            images=self.image_view(image)[None] * valid if latents is None else None,
            latents=latents,
            valid=torch.tensor([valid]),
        )


def open_split(
    shards: Path, split: str, encoder_view: View, image_view: View, cached: CachedLatents | None = None
) -> Reader:
    """The samples of a split that `ingest` wrote (train or heldout)."""
    listed = read_index(shards).splits[split]
    return Reader(folder=shards / split, listed=listed, encoder_view=encoder_view, image_view=image_view, cached=cached)


def in_order(sizes: Sequence[int]) -> Iterator[SampleIndex]:
    """Every sample once, in the order of the shards."""
    return ((shard, number) for shard, size in enumerate(sizes) for number in range(size))


def shuffled(sizes: Sequence[int], seed: int, start: int = 0) -> Iterator[SampleIndex]:
    """Epoch after epoch without end, each in an order of its own, from the sample at position `start` on."""
    epoch, skip = divmod(start, sum(sizes))
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for shard in torch.randperm(len(sizes), generator=rng).tolist():
            numbers = torch.randperm(sizes[shard], generator=rng).tolist()
            yield from ((shard, number) for number in numbers[skip:])
            skip = max(0, skip - len(numbers))
        epoch += 1


def batched(indices: Iterator[SampleIndex], batch_size: int, share: slice = slice(None)) -> Iterator[list[SampleIndex]]:
    """Batches of indices, the last one as it comes; `share` is the part of each that this process reads."""
    while batch := list(islice(indices, batch_size)):
        yield batch[share]


def read(reader: Reader, batches: Iterator[list[SampleIndex]], workers: int) -> Iterator[Batch]:
    """Read batches of indices, by `workers` processes beside this one (0: none), in their order."""
    loader: DataLoader[Batch] = DataLoader(
        reader,
        batch_sampler=batches,  # any iterable of lists will do
        collate_fn=_join,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def strict(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; a sample that cannot be read is a UserError here: what is measured must be whole."""
    for batch in batches:
        if not batch.valid.all():
            raise UserError(f"{batch.keys[int(batch.valid.int().argmin())]}; run `un2clip ingest` again")
        yield batch


def _join(samples: list[Batch]) -> Batch:
    def join(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.cat(values)

    tensors = {name: join(name) for name in ("pixel_values", "images", "latents", "valid")}
    return Batch(keys=[key for sample in samples for key in sample.keys], **tensors)  # type: ignore[arg-type]
