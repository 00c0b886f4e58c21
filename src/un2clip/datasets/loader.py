"""Batches for training and validation: each image in two views, in an order that a seed decides.

The order is a formula. An epoch goes through the shards in a permuted order, and through each shard's samples
in a permuted order; epoch follows epoch without a gap. Step k of a training takes the k-th `batch_size` samples
of it, of which each process takes its share. So every sample is seen exactly once an epoch on any number of
processes and workers, and a training goes on at any step without reading what came before.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from un2clip.datasets import copies, remote
from un2clip.datasets.augmenting import ViewConfig, random_crop
from un2clip.datasets.handing import ANSWER_S, LOST, SHARED_MEMORY, check_shared_memory
from un2clip.datasets.images import without_ends
from un2clip.datasets.latents import CachedLatents
from un2clip.datasets.random_access import CorruptSample, read_image
from un2clip.datasets.shards import Shard, read_index
from un2clip.errors import UserError

View = Callable[[Image.Image], Tensor]
#: One batch, by name: keys (B texts, for messages; a reason where a sample is corrupt), pixel_values (B, 3, H, W)
#: float32 as the encoder wants them, valid (B,) bool (a sample that could not be read is zeros and must not count), and
#: of the decoder's view either images (B, 3, S, S) float32 in [-1, 1] or, from the cache, latents (B, C, h, w), scaled;
#: and view, as pixel_values, where a second view was asked for.
Batch = dict[str, Any]
WHOLE = (1.0, 1.0)  # lowest and highest share of an image that a random crop keeps: no crop


class SampleIndex(NamedTuple):
    """Which sample: number of the shard, number in it; and the epoch, by which a crop is drawn."""

    shard: int
    number: int
    epoch: int = 0


def generator_view(image_px: int) -> View:
    """PIL image -> (3, image_px, image_px) float32 in [-1, 1]: cropped as the encoder's own view is."""
    return v2.Compose(
        [
            without_ends,
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
        image_view: of the decoder; not made where latents are cached.
        cached: the VAE's latents, or None.
        crop: lowest and highest share of the image's area that a random crop keeps, the same crop in both views.
            Latents of what is cropped cannot be cached.
        second: what makes of the image a second view for the encoder, `view` of the batch; None for none.
        seed: of the crop and of the second view, with the epoch and the sample.
        ahead: shards of a bucket that are copied before they are needed; see copies.Ahead.
    """

    folder: Path
    listed: tuple[Shard, ...]
    encoder_view: View
    image_view: View
    cached: CachedLatents | None
    crop: tuple[float, ...] = WHOLE
    second: ViewConfig | None = None
    seed: int = 0
    ahead: int = 0

    @property
    def sizes(self) -> list[int]:
        """Number of samples in each shard."""
        return [shard.samples for shard in self.listed]

    def __getitem__(self, index: SampleIndex) -> Batch:
        shard = self.listed[index.shard]
        tar = self.folder / shard.name
        file = copies.near(tar, shard)
        try:
            key, image = read_image(file, index.number)
            valid = True
        except CorruptSample as error:
            key, image, valid = str(error).replace(str(file), remote.address(tar)), Image.new("RGB", (1, 1)), False
        if self.crop != WHOLE:
            image = random_crop(image, self.crop, hash((self.seed, *index)))
        batch: Batch = {
            "keys": [key],
            "pixel_values": torch.where(torch.tensor(valid), self.encoder_view(image)[None], 0.0),
            "valid": torch.tensor([valid]),
        }
        if self.second is not None:
            other = self.encoder_view(self.second.second_view(image, hash((self.seed, *index, 1))))
            batch["view"] = torch.where(torch.tensor(valid), other[None], 0.0)
        if self.cached is not None:
            return batch | {"latents": self.cached.read(tar, index.number)[None]}
        return batch | {"images": torch.where(torch.tensor(valid), self.image_view(image)[None], 0.0)}


def open_split(
    shards: Path, split: str, encoder_view: View, image_view: View, cached: CachedLatents | None = None
) -> Reader:
    """The samples of a split that `ingest` wrote (train or heldout)."""
    listed = read_index(shards).splits.get(split, ())
    return Reader(folder=shards / split, listed=listed, encoder_view=encoder_view, image_view=image_view, cached=cached)


def in_order(sizes: Sequence[int]) -> Iterator[SampleIndex]:
    """Every sample once, in the order of the shards."""
    return (SampleIndex(shard, number) for shard, size in enumerate(sizes) for number in range(size))


def shuffled(sizes: Sequence[int], seed: int, start: int = 0) -> Iterator[SampleIndex]:
    """Epoch after epoch without end, each in an order of its own, from the sample at position `start` on."""
    epoch, skip = divmod(start, sum(sizes))
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for shard in torch.randperm(len(sizes), generator=rng).tolist():
            numbers = torch.randperm(sizes[shard], generator=rng).tolist()
            yield from (SampleIndex(shard, number, epoch) for number in numbers[skip:])
            skip = max(0, skip - len(numbers))
        epoch += 1


def batched(indices: Iterator[SampleIndex], batch_size: int, share: slice = slice(None)) -> Iterator[list[SampleIndex]]:
    """Batches of indices, the last one as it comes; `share` is the part of each that this process reads."""
    while batch := list(islice(indices, batch_size)):
        yield batch[share]


def read(reader: Dataset[Batch], batches: Iterator[list[Any]], workers: int) -> Iterator[Batch]:
    """Read batches of indices, by `workers` processes beside this one (0: none), in their order.

    Args:
        reader: gives a batch of one for an index; as Reader does.

    Raises:
        UserError: a shard or its latents are not those that were made, or the workers give no batch; of a sample that
            is merely broken, see `strict`.
    """
    if not isinstance(reader, Reader) or not remote.is_remote(reader.folder):
        yield from _read(reader, batches, workers)
        return
    with (
        copies.Ahead(reader.folder, reader.listed, reader.ahead) as ahead,
        closing(_read(reader, ahead.give(batches), workers)) as found,
    ):
        for batch in found:
            ahead.read()
            yield batch


def _read(reader: Dataset[Batch], batches: Iterator[list[Any]], workers: int) -> Generator[Batch]:
    if workers:
        batches = check_shared_memory(reader, batches, workers)
    loader: DataLoader[Batch] = DataLoader(
        reader,
        batch_sampler=batches,  # any iterable of lists will do
        collate_fn=join,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        timeout=ANSWER_S if workers else 0,
    )
    try:
        yield from loader
    except UserError as error:  # from a worker it comes with that process's traceback before it
        said = str(error.args[0]).strip().splitlines()[-1]
        raise type(error)(said.partition(f"{type(error).__name__}: ")[2] or said) from None
    except RuntimeError as error:
        if lost := LOST.search(str(error)):
            raise UserError(
                f"{lost[0]}: a worker that reads images was killed, hangs, or has a slow disk; look at memory, at "
                f"{SHARED_MEMORY} and at the disk, or set `workers` of this stage to 0"
            ) from None
        raise


def strict(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; a sample that cannot be read is a UserError here: what is measured must be whole."""
    for batch in batches:
        if not batch["valid"].all():
            raise UserError(f"{batch['keys'][int(batch['valid'].int().argmin())]}; run `un2clip ingest` again")
        yield batch


def join(samples: Sequence[Batch]) -> Batch:
    """Batches of the same names as one."""
    return {name: _joined([sample[name] for sample in samples]) for name in samples[0]}


def narrow(batch: Batch, part: slice) -> Batch:
    """A part of a batch, or of anything that is lists and tensors by name."""
    return {name: value[part] for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    return [each for value in values for each in value]
