"""The order of samples, its shares, and what cannot be read."""

import dataclasses
import itertools
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from un2clip import hashes
from un2clip.datasets import loader
from un2clip.datasets.random_access import locate, read_image
from un2clip.datasets.shards import INDEX, read_index, samples
from un2clip.errors import UserError
from un2clip.hashes import file_sha256
from un2clip.models.clip import load_clip

SIZES = [5, 1, 7, 3]


def open_tiny(tiny, shards: Path | None = None, split: str = "train") -> loader.Reader:
    clip = load_clip(tiny.backbones / "clip")
    return loader.open_split(shards or tiny.shards, split, clip.preprocess, loader.generator_view(32))


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    """Three epochs of 16 samples: each holds all of them, no two are alike; another seed gives other orders."""
    stream = list(itertools.islice(loader.shuffled(SIZES, seed=3), 48))
    epochs = [stream[i : i + 16] for i in (0, 16, 32)]
    assert all(
        sorted(index[:2] for index in epoch) == [index[:2] for index in loader.in_order(SIZES)] for epoch in epochs
    )
    assert [{index.epoch for index in epoch} for epoch in epochs] == [{0}, {1}, {2}]
    epochs = [[index[:2] for index in epoch] for epoch in epochs]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert stream != list(itertools.islice(loader.shuffled(SIZES, seed=4), 48))


@pytest.mark.parametrize("start", [0, 1, 6, 15, 16, 17, 40])
def test_the_order_can_be_entered_anywhere(start: int) -> None:
    """From position k on it is what the whole order is from position k on, within an epoch and beyond it."""
    whole = list(itertools.islice(loader.shuffled(SIZES, seed=1), 60))
    assert list(itertools.islice(loader.shuffled(SIZES, seed=1, start=start), 60 - start)) == whole[start:]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_and_workers_reads_each_sample_once(tiny, world: int, workers: int) -> None:
    """The shares of all processes, put together in order, are the batches of one process; an epoch is complete."""
    reader = open_tiny(tiny)
    whole = list(itertools.islice(loader.shuffled(reader.sizes, 0), 192))
    keys: list[list[str]] = [[] for _ in range(4)]
    for rank in range(world):
        indices = itertools.islice(loader.shuffled(reader.sizes, 0), 192)
        share = slice(rank * 48 // world, (rank + 1) * 48 // world)
        for i, batch in enumerate(
            loader.read(reader, loader.batched(indices, 48, share), workers if world == 2 else 0)
        ):
            keys[i] += batch["keys"]
    flat = [key for batch in keys for key in batch]
    names = [shard.name for shard in reader.listed]
    assert flat == [locate(reader.folder / names[shard])[number].key for shard, number, _ in whole]
    assert len(set(flat)) == 192


def test_random_access_reads_what_the_stream_reads(tiny) -> None:
    """Each sample by its number has the key and the pixels that reading the shard from its beginning gives."""
    for shard in read_index(tiny.shards).splits["train"]:
        for number, sample in enumerate(samples(tiny.shards / "train", shard.name)):
            key, image = read_image(tiny.shards / "train" / shard.name, number)
            assert key == sample.key and image.tobytes() == sample.image.tobytes()


@pytest.fixture
def damaged(tiny, tmp_path) -> Path:
    """The shards, with the pixels of one sample overwritten and another shard's headers gone from its third on."""
    shutil.copytree(tiny.shards, tmp_path / "shards")
    first, second = (tmp_path / "shards/train" / f"0000{i}.tar" for i in (0, 1))
    location = locate(tiny.shards / "train" / first.name)[4]
    with first.open("r+b") as file:
        file.seek(location.offset + 20)
        file.write(b"\xff" * 40)
    with tarfile.open(second) as tar:
        third = [member for member in tar if member.name.endswith(".png")][2]
    with second.open("r+b") as file:
        file.seek(third.offset)
        file.write(b"\xff" * 512)
    text = (tmp_path / "shards" / INDEX).read_text()
    for tar in (first, second):  # as of data that were so when they were made: otherwise the shard is refused
        text = text.replace(file_sha256(tiny.shards / "train" / tar.name), file_sha256(tar))
    (tmp_path / "shards" / INDEX).write_text(text)
    return tmp_path / "shards"


def test_what_cannot_be_read_is_marked_and_the_epoch_goes_on(tiny, damaged) -> None:
    """A broken picture and a shard that breaks off: their samples are zeros and do not count; all others are there."""
    reader, whole = open_tiny(tiny, damaged), open_tiny(tiny)
    read = [list(loader.read(each, loader.batched(loader.in_order(whole.sizes), 50), 0)) for each in (reader, whole)]
    broken, good = ({n: torch.cat([b[n] for b in r]) for n in ("pixel_values", "images", "valid")} for r in read)
    corrupt = [4, *range(whole.sizes[0] + 2, whole.sizes[0] + whole.sizes[1])]
    assert (~broken["valid"]).nonzero().flatten().tolist() == corrupt
    for name in ("pixel_values", "images"):
        assert not broken[name][corrupt].any()
        assert torch.equal(broken[name][broken["valid"]], good[name][broken["valid"]])
    with pytest.raises(UserError, match=r"00000.tar: sample .*; run `un2clip ingest` again"):
        list(loader.strict(loader.read(reader, loader.batched(loader.in_order(whole.sizes), 50), 0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_with_a_byte_changed_is_refused(tiny, tmp_path, workers: int) -> None:
    """A picture of the same size and name, with other pixels, would be trained on under the old hash."""
    shutil.copytree(tiny.shards, tmp_path / "shards")
    tar = tmp_path / "shards/train/00001.tar"
    with tar.open("r+b") as file:
        file.seek(locate(tar)[0].offset + 60)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    reader = open_tiny(tiny, tmp_path / "shards")
    read = loader.read(reader, loader.batched(loader.in_order(reader.sizes), 50), workers)
    with pytest.raises(UserError, match=r"^\S*train/00001.tar is not what `un2clip ingest` wrote: its bytes hash to"):
        list(read)
    locate.cache_clear()


def test_a_shard_is_hashed_once(tiny, monkeypatch) -> None:
    """Reading 192 samples of three shards hashes three files."""
    hashed: list[Path] = []
    monkeypatch.setattr(hashes, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    hashes._file_sha256.cache_clear()
    reader = open_tiny(tiny)
    for _ in range(2):
        list(loader.read(reader, loader.batched(loader.in_order(reader.sizes), 50), 0))
    assert sorted(hashed) == [reader.folder / shard.name for shard in reader.listed]


def test_a_crop_is_by_seed_epoch_and_sample(tiny) -> None:
    """The same part of an image in both views, whatever order it is read in; another one in the next epoch."""
    plain = dataclasses.replace(open_tiny(tiny), encoder_view=loader.generator_view(32))
    cropping = dataclasses.replace(plain, crop=(0.3, 0.5), seed=1)
    index, later = loader.SampleIndex(0, 3, epoch=0), loader.SampleIndex(0, 3, epoch=1)
    state = torch.get_rng_state()
    first, _, again = cropping[index], cropping[loader.SampleIndex(1, 0)], cropping[index]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["images"], again["images"]) and torch.equal(first["images"], first["pixel_values"])
    others = (plain[index], cropping[later], dataclasses.replace(cropping, seed=2)[index])
    assert all(not torch.equal(first["images"], other["images"]) for other in others)


def test_a_crop_keeps_its_share_and_shape() -> None:
    """Of 200 crops each has the share of the area that was asked for, nearly square, and lies within the image."""
    image = Image.new("RGB", (100, 100))
    sizes = [loader.random_crop(image, (0.5, 0.8), seed).size for seed in range(200)]
    shares = [width * height / 1e4 for width, height in sizes]
    assert 0.48 < min(shares) < 0.55 and 0.75 < max(shares) < 0.82
    assert all(0.9 < width / height < 1.1 and max(width, height) <= 100 for width, height in sizes)
