"""Tars as people have them: numbered from zero twice, compressed, packed on a Mac, sorted by kind, without captions."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.unit.test_ingest import good, image_file, picture, rejects, run, write_tar
from un2clip.datasets.caption_bank import caption_bank
from un2clip.datasets.random_access import locate, read_image
from un2clip.datasets.shards import read_index
from un2clip.datasets.sources import SCATTERED
from un2clip.datasets.tars import Keys, Rejected
from un2clip.errors import UserError
from un2clip.evaluation.classification import open_classification
from un2clip.evaluation.readers import data_sha256, find_tars, read_tars
from un2clip.hashes import is_hidden
from un2clip.sources.hub import Source, obtain

NUMBERS = ("000000000", "000000001", "000000002")


def numbered(path: Path, first_seed: int, *names: str) -> None:
    write_tar(path, *(good(name, first_seed + i) for i, name in enumerate(names or NUMBERS)))


@pytest.mark.parametrize(("one", "other"), [("a.tar", "b.tar"), ("heldout/00000.tar", "train/00000.tar")])
def test_two_downloads_numbered_from_zero_lose_nothing(tmp_path: Path, one: str, other: str) -> None:
    """Six different pictures under three names: six keys, each with its own picture, those of the second by its tar."""
    numbered(tmp_path / "images" / one, 0)
    numbered(tmp_path / "images" / other, 10)
    kept, reasons = run(tmp_path)
    assert reasons == {}
    assert kept == [*NUMBERS, *(f"{other.removesuffix('.tar')}/{name}" for name in NUMBERS)]
    found = []
    for split, listed in read_index(tmp_path / "out/shards").splits.items():
        for shard in listed:
            tar = tmp_path / "out/shards" / split / shard.name
            found += [read_image(tar, number) for number in range(len(locate(tar)))]
    pictures = [picture(seed).tobytes() for seed in (0, 1, 2, 10, 11, 12)]
    assert [(key, image.tobytes()) for key, image in found] == list(zip(kept, pictures, strict=True))


def test_only_equal_names_in_one_tar_are_duplicates() -> None:
    """Against every way in which names may collide: all keys differ, also where a tar has what would be made."""
    keys = Keys()
    tars = {"x.tar": ["1", "a/1"], "a.tar": ["1", "2"], "b.tar": ["1", "b/1", "a/1"], "../evil\n.tar": ["1"]}
    claimed = []
    for tar, names in tars.items():
        keys.open(tar)
        claimed += [keys.claim(name) for name in names]
        with pytest.raises(Rejected, match="duplicate key"):
            keys.claim(names[0])
    assert claimed == ["1", "a/1", "a/a/1", "2", "b/1", "b/b/1", "b/a/1", "../evil_/1"]
    assert len(set(claimed)) == sum(map(len, tars.values()))


def test_a_split_of_which_nothing_is_left_stops(tmp_path: Path) -> None:
    """A folder for each split, and one has broken pictures only; or everything was held out."""
    numbered(tmp_path / "images/heldout/0.tar", 0)
    write_tar(tmp_path / "images/train/0.tar", [("x.jpg", b"<html>"), ("x.txt", b"x")])
    with pytest.raises(UserError, match=r"no usable sample in \S*images/train: kept 3 of 4; .*first: train/0.tar 'x'"):
        run(tmp_path)
    assert not (tmp_path / "out/shards").exists()
    numbered(tmp_path / "b/images/0.tar", 0)
    with pytest.raises(UserError, match="nothing is left to train on; lower ingest.heldout_fraction or add images"):
        run(tmp_path / "b", heldout_fraction=0.999999)


def test_what_was_not_opened_is_named(tmp_path: Path, capsys) -> None:
    """.TAR is read; a compressed tar, a folder and what a downloader leaves are named with what would change it."""
    images = tmp_path / "images"
    numbered(images / "a.tar", 0)
    numbered(images / "c.TAR", 10)
    numbered(images / "more/d.tar", 20)
    for name in ("b.tar.gz", "e.tgz", "00000_stats.json", "00000.parquet", "a\x1b[2J.txt", ".DS_Store"):
        (images / name).write_bytes(b"")
    for number in range(5):
        (images / f"{number}.csv").write_bytes(b"")
    kept, _ = run(tmp_path)
    assert len(kept) == 6
    said = capsys.readouterr().out
    assert "not read: 0.csv, 00000.parquet, 00000_stats.json, 4 more of .csv and 1 more of .txt (not a .tar), " in said
    assert "b.tar.gz, e.tgz (compressed: unpack it to a .tar), more (a folder: its tars are read where" in said
    assert "DS_Store" not in said and "\x1b" not in said
    numbered(tmp_path / "split/images/train/a.tar", 0)
    numbered(tmp_path / "split/images/heldout/a.tar", 5)
    numbered(tmp_path / "split/images/train/deep/a.tar", 9)
    numbered(tmp_path / "split/images/val/a.tar", 9)
    run(tmp_path / "split")
    assert "not read: val, train/deep (a folder" in capsys.readouterr().out
    (tmp_path / "gz/images").mkdir(parents=True)
    (tmp_path / "gz/images/a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no \*.tar of its own, but a.tar.gz \(compressed: unpack it"):
        run(tmp_path / "gz")


def test_members_that_stand_apart_are_told_so(tmp_path: Path, capsys) -> None:
    """All images, then all texts: no image is taken for one without a caption; the sentence has tar's option."""
    apart = [good(name, i) for i, name in enumerate("abc")]
    members = [[each] for sample in zip(*apart, strict=True) for each in sample]
    write_tar(tmp_path / "images/0.tar", *members, good("whole"), good("whole"))
    kept, reasons = run(tmp_path)
    assert kept == ["whole"] and reasons == {SCATTERED: 6, "duplicate key": 1}
    assert "tar --sort=name" in capsys.readouterr().out
    assert rejects(tmp_path)[0] == {"tar": "0.tar", "key": "a", "reason": SCATTERED, "detail": "here stand png"}
    for tar, match in ((members, "a is not whole: its members stand apart, make the tar with `tar --sort=name`"),):
        write_tar(tmp_path / "benchmark/0.tar", *tar)
        with pytest.raises(UserError, match=match):
            list(read_tars([tmp_path / "benchmark/0.tar"], "txt"))


def test_images_without_captions_are_kept(tmp_path: Path, capsys) -> None:
    """With none or an empty one; the bank of captions takes the others, and says what it needs where there are none."""
    png = image_file(picture(1))
    write_tar(tmp_path / "images/0.tar", [("a.png", png)], [("b.png", png), ("b.txt", b" \n")], good("c"), good("d"))
    assert run(tmp_path) == (["a", "b", "c", "d"], {})
    assert "kept 4 of 4; heldout 0; train 4; nothing is held out to measure on; 2 without a caption" in (
        capsys.readouterr().out
    )
    index = read_index(tmp_path / "out/shards")
    assert index.captions["n"] == 2
    assert sorted(caption_bank(tmp_path / "out/shards", seed=0, size=9)) == ["the caption of c", "the caption of d"]
    write_tar(tmp_path / "images/0.tar", [("a.png", png)], [("b.png", png)])
    run(tmp_path)
    locate.cache_clear()
    with pytest.raises(UserError, match="train has 0; give `ingest` images with captions, or choose a method without"):
        caption_bank(tmp_path / "out/shards", seed=0, size=9)


def test_dot_files_of_a_tar_are_no_samples(tmp_path: Path, capsys) -> None:
    """A tar that a Mac packed, ._ beside each member: the same samples as without, and no reject."""
    plain = [*good("a"), *good("d/b")]
    mac = [each for name, data in plain for each in ((f"./._{name.rpartition('/')[2]}", b"Mac OS X"), (name, data))]
    write_tar(tmp_path / "images/0.tar", mac, [(".DS_Store", b"x"), (".git/HEAD", b"x"), (".cache/x.png", b"x")])
    assert run(tmp_path) == (["a", "d/b"], {})
    assert "; 7 dot-files passed over" in capsys.readouterr().out
    assert [key for key, _, _ in read_tars([tmp_path / "images/0.tar"], "txt")] == ["a", "d/b"]


@pytest.mark.parametrize(
    "name", [".DS_Store", "test/._0.tar", ".cache/huggingface/download/x.metadata", "._x.json", ".gitignore"]
)
def test_a_dot_file_changes_no_data(tmp_path: Path, name: str) -> None:
    """What Finder, the hub's client and git leave in a folder: the same hash, the same tars, the same model files."""
    folder = tmp_path / "zeroshot-two"
    write_tar(folder / "test/0.tar", [("a.png", image_file(picture(0))), ("a.cls", b"0")])
    (folder / "classnames.txt").write_text("a\nb\n")
    before = data_sha256(folder), find_tars(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"left by a tool")
    assert (data_sha256(folder), find_tars(folder)) == before
    (folder / "classnames.txt").write_text("a\nc\n")
    assert data_sha256(folder) != before[0]
    with pytest.raises(UserError, match="has no file test/._"):
        obtain(Source(location=str(folder), revision="", sha256={}), kind="dataset", files=["test/._*"], name="x")


def test_hidden_is_what_a_dot_begins() -> None:
    """The file's name or a folder's on the way; a path through the parent folder is not."""
    assert all(map(is_hidden, (".a", "a/.b", ".a/b", "a/.b/c", "./.a")))
    assert not any(map(is_hidden, ("a", "./a", "../a", "a.b", "a/b.c", "..", ".")))


def test_two_tars_of_one_benchmark_may_number_alike(tmp_path: Path) -> None:
    """A benchmark's ids differ too; within one tar a name twice is refused, since one outcome would be lost."""
    for tar in "ab":
        numbered(tmp_path / f"{tar}.tar", 0)
    found = [key for key, _, _ in read_tars(find_tars(tmp_path), "txt")]
    assert found == [*NUMBERS, *(f"b/{name}" for name in NUMBERS)]
    numbered(tmp_path / "a.tar", 0, "x", "y", "x")
    with pytest.raises(UserError, match="a.tar: sample x occurs twice$"):
        list(read_tars([tmp_path / "a.tar"], "txt"))


def test_a_prefix_of_an_odd_tar_is_readable(tmp_path: Path) -> None:
    """Dots, spaces, an escape and letters beyond ASCII in a tar's name: its samples are read back under their keys."""
    names = ["a.tar", "v1.2 final.tar", "b\x1bc.tar", "größe.tar"]
    for seed, name in enumerate(names):
        numbered(tmp_path / "images" / name, 10 * seed, "0")
    kept, _ = run(tmp_path)
    assert len(set(kept)) == 4 and all(key.isprintable() for key in kept)
    with Image.open(io.BytesIO(image_file(picture(0)))) as first:
        tar = tmp_path / "out/shards/train/00000.tar"
        assert read_image(tar, 0)[1].tobytes() == first.convert("RGB").tobytes()
    assert [each.key for each in locate(tar)] == kept


def test_an_unpacked_set_is_read_without_dot_files(tmp_path: Path) -> None:
    """torchvision's own readers of folders take `._a.jpg` for a picture: as many items as without it."""
    folder = tmp_path / "zeroshot-country211"
    for name in (f"{i:03}/{file}" for i in range(211) for file in ("a.jpg", "._a.jpg")):
        path = folder / "country211/test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"Mac OS X" if path.name.startswith(".") else image_file(picture(1), "JPEG"))
    data = open_classification(folder, lambda image: torch.zeros(3, 1, 1))
    assert [(key, label) for key, _, label in (sample() for sample in data.samples)] == [
        (str(i), i) for i in range(211)
    ]
