"""Shards: written byte for byte the same, of equal size, read back whole, also by webdataset itself."""

import hashlib
import io
import json
import math
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from un2clip.datasets.shards import INDEX, EncodedSample, Index, Shard, digest, read_index, samples, write_shards
from un2clip.errors import UserError


def pixels(seed: int) -> np.ndarray:
    """A small random picture, (6, 8, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(i: int, key: str | None = None) -> EncodedSample:
    """Sample number `i`, as PNG; every other one has metadata."""
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return EncodedSample(
        key=key or f"{i:06d}",
        image=file.getvalue(),
        extension="png",
        caption=f"caption number {i}, crème",
        metadata={"b": i, "a": [1, 2]} if i % 2 else None,
    )


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def index_of(shards: Path, split: str, listed: tuple[Shard, ...]) -> Index:
    """Save an index that lists one split."""
    index = Index(splits={split: listed}, rejected={"missing text": 2}, captions={"n": 1}, damaged_tars={})
    index.save(shards)
    return index


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    """Keys, pixels and captions come back as they went in, across shards, in order."""
    write_shards(tmp_path / "train", map(encoded, range(11)), samples_per_shard=4)
    back = list(samples(tmp_path / "train"))
    assert [sample.key for sample in back] == [f"{i:06d}" for i in range(11)]
    assert [sample.caption for sample in back] == [f"caption number {i}, crème" for i in range(11)]
    for i, sample in enumerate(back):
        assert sample.image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(sample.image), pixels(i))


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    """The library whose form this is sees the same samples, metadata included."""
    listed = write_shards(tmp_path, map(encoded, range(5)), samples_per_shard=3)
    urls = [str(tmp_path / shard.name) for shard in listed]
    back = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["__key__"] for sample in back] == [f"{i:06d}" for i in range(5)]
    assert [sample["txt"] for sample in back] == [encoded(i).caption for i in range(5)]
    assert [sample.get("json") for sample in back] == [encoded(i).metadata for i in range(5)]
    np.testing.assert_array_equal(back[4]["png"], pixels(4))


@pytest.mark.parametrize("key", ["a/b/0001", "x" * 180, "clé-日本", "with space"])
def test_unusual_keys_survive(tmp_path: Path, key: str) -> None:
    """Folders, long names, spaces and other alphabets in a key come back unchanged."""
    write_shards(tmp_path, [encoded(1, key), encoded(2)], samples_per_shard=9)
    assert [sample.key for sample in samples(tmp_path)] == [key, "000002"]


def test_same_samples_same_bytes_whenever_written(tmp_path: Path) -> None:
    """Two writes a while apart differ in nothing; no header holds a time or an owner; members are sorted."""
    write_shards(tmp_path / "a", map(encoded, range(7)), samples_per_shard=3)
    time.sleep(1.1)  # a tar's clock ticks in seconds
    write_shards(tmp_path / "b", map(encoded, range(7)), samples_per_shard=3)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "00000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members] == ["000000.png", "000000.txt", "000001.json", "000001.png", "000001.txt"]


@pytest.mark.parametrize(
    ("n", "per_shard", "sizes"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [2, 3]), (9, 4, [3, 3, 3]), (11, 4, [3, 4, 4]), (3, 1, [1, 1, 1])],
)
def test_shards_are_of_equal_size(tmp_path: Path, n: int, per_shard: int, sizes: list[int]) -> None:
    """As few shards as allowed, none above the limit, sizes at most one apart."""
    listed = write_shards(tmp_path, map(encoded, range(n)), samples_per_shard=per_shard)
    assert [shard.samples for shard in listed] == sizes


def test_a_shard_is_listed_with_its_size_and_hash(tmp_path: Path) -> None:
    """Bytes and sha256 are those of the file on disk, and nothing but the shards is left in the folder."""
    listed = write_shards(tmp_path, map(encoded, range(5)), samples_per_shard=2)
    files = folder_bytes(tmp_path)
    assert {shard.name: shard.bytes for shard in listed} == {name: len(data) for name, data in files.items()}
    assert {shard.name: shard.sha256 for shard in listed} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


def test_writer_refuses_a_folder_with_tars(tmp_path: Path) -> None:
    """Tars of an older run would be read as part of this one."""
    write_shards(tmp_path, [encoded(0)], samples_per_shard=1)
    with pytest.raises(UserError, match=f"{tmp_path} already holds tars"):
        write_shards(tmp_path, [encoded(1)], samples_per_shard=1)


def test_one_shard_can_be_read_alone(tmp_path: Path) -> None:
    """By its name, a shard's samples and no others; an unknown name is an error."""
    write_shards(tmp_path, map(encoded, range(7)), samples_per_shard=3)
    assert [sample.key for sample in samples(tmp_path, "00001.tar")] == ["000002", "000003"]
    with pytest.raises(UserError, match="has no 00009.tar"):
        samples(tmp_path, "00009.tar")


@pytest.mark.parametrize(("make", "what"), [(True, "has no"), (False, "does not exist")])
def test_reading_nothing_names_folder_and_fix(tmp_path: Path, make: bool, what: str) -> None:
    """An empty or missing folder is one line with its name and the command, at the call."""
    folder = tmp_path / "train"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match=f"{folder} {what}.*un2clip ingest"):
        samples(folder)


def test_reading_a_damaged_shard_is_an_error_with_its_name(tmp_path: Path) -> None:
    """A shard that was cut off is not taken for a shorter one."""
    write_shards(tmp_path, map(encoded, range(3)), samples_per_shard=9)
    tar = tmp_path / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1500])
    with pytest.raises(UserError, match="00000.tar: ReadError"):
        list(samples(tmp_path))


def test_reading_an_unchecked_sample_is_an_error_with_its_key(tmp_path: Path) -> None:
    """The reader takes only what `ingest` would keep, and says which sample is not."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("lonely.txt"))
    with pytest.raises(UserError, match="a.tar: sample lonely: .*un2clip ingest"):
        list(samples(tmp_path))


def test_index_comes_back(tmp_path: Path) -> None:
    """An index read is the index saved; its totals are sums of its parts."""
    listed = write_shards(tmp_path / "train", map(encoded, range(5)), samples_per_shard=2)
    index = index_of(tmp_path, "train", listed)
    assert read_index(tmp_path) == index
    assert (index.count("train"), index.kept, index.read) == (5, 5, 7)
    content = json.loads((tmp_path / INDEX).read_text())
    assert (content["read"], content["kept"], content["rejected_total"]) == (7, 5, 2)


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"splits": {"train": [{"name": "x"}]}}'])
def test_a_broken_index_is_an_error_with_its_name(tmp_path: Path, broken: str) -> None:
    """Whatever is in the file, the message names it and the fix."""
    (tmp_path / INDEX).write_text(broken)
    with pytest.raises(UserError, match=f"{INDEX}.*un2clip ingest"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content["splits"]["train"][0].update(samples=-math.inf), "-Infinity is no number"),
        (lambda content: content["splits"]["train"][0].update(samples=-3), "samples must be at least 0, got -3"),
        (lambda content: content["splits"]["train"][0].update(samples=2.5), "samples must be an integer, got 2.5"),
        (lambda content: content.update(kept=4), "kept is 4, but its shards and rejects add up to 3"),
        (lambda content: content.update(samples={"train": 4}), "samples is"),
        (lambda content: content["rejected"].update({"two images": 1}), "read is 5, but its shards and rejects add up"),
    ],
    ids=["-inf", "negative", "half", "kept", "of a split", "rejects"],
)
def test_an_index_whose_totals_do_not_add_up_is_an_error(tmp_path: Path, edit: Any, says: str) -> None:
    """Numbers that no data set has, or that disagree with each other, are named."""
    index_of(tmp_path, "train", write_shards(tmp_path / "train", map(encoded, range(3)), samples_per_shard=3))
    content = json.loads((tmp_path / INDEX).read_text())
    edit(content)
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{INDEX}.*{says}.*run `un2clip ingest` to make it"):
        read_index(tmp_path)


def test_an_index_without_its_shard_is_an_error(tmp_path: Path) -> None:
    """A shard that is absent or of another size is found before anything is trained on it."""
    index_of(tmp_path, "train", write_shards(tmp_path / "train", map(encoded, range(5)), samples_per_shard=2))
    (tmp_path / "train" / "00001.tar").write_bytes(b"short")
    with pytest.raises(UserError, match="00001.tar is absent or not the"):
        read_index(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(UserError, match="No such file"):
        read_index(tmp_path)


def test_digest_follows_the_data_alone(tmp_path: Path) -> None:
    """Equal data in another folder has the same digest; other samples have another."""
    digests = []
    for name, first in (("a", 0), ("b", 0), ("c", 1)):
        listed = write_shards(tmp_path / name / "train", map(encoded, range(first, first + 4)), samples_per_shard=2)
        index_of(tmp_path / name, "train", listed)
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64
