"""`ingest` on real photographs (COCO, openly licensed), as they are and with the faults that sources have."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from un2clip.config import build, read_params
from un2clip.datasets.shards import read_index, samples
from un2clip.stages.ingest import REJECTED, Ingest, ingest

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "realdata"
TARS = [f"coco-open-{i:05d}.tar" for i in range(3)]

pytestmark = pytest.mark.skipif(
    not all((PHOTOS / tar).is_file() for tar in TARS), reason="needs the coco-open tars in ../shared/realdata"
)


def params(**changes: object) -> Ingest:
    """The checked-in parameters, with some changed."""
    return build(Ingest, read_params(ROOT / "params.yaml")["ingest"] | changes, "ingest")


def members(tar: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member of one of the tars."""
    with tarfile.open(PHOTOS / tar) as file:
        for member in file:
            yield member.name, file.extractfile(member).read()  # type: ignore[union-attr]


def write_tar(path: Path, content: list[tuple[str, bytes]]) -> None:
    """Write a tar with names as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def black_png(side: int) -> bytes:
    """A whole, valid 1-bit PNG of side x side black pixels: few bytes, much memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(side * (1 + -(-side // 8))), 1)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_every_photograph_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """111 of 111, said so; each with its caption and the pixels that Pillow itself makes of the original."""
    ingest(params(short_side_px=64), images=PHOTOS, shards=tmp_path / "shards")
    assert "kept 111 of 111" in capsys.readouterr().out
    index = read_index(tmp_path / "shards")
    assert (index.kept, index.read, index.rejected, index.damaged_tars) == (111, 111, {}, {})

    originals = dict(member for tar in TARS for member in members(tar))
    kept = [sample for split in ("train", "heldout") for sample in samples(tmp_path / "shards" / split)]
    assert sorted(sample.key for sample in kept) == sorted({name.partition(".")[0] for name in originals})
    for sample in kept:
        assert sample.caption == originals[f"{sample.key}.txt"].decode().strip()
        assert min(sample.image.size) == 64
        photo = Image.open(io.BytesIO(originals[f"{sample.key}.jpg"])).convert("RGB")
        np.testing.assert_array_equal(
            np.asarray(sample.image), np.asarray(photo.resize(sample.image.size, Image.Resampling.BICUBIC))
        )


def test_small_photographs_keep_their_bytes(tmp_path: Path) -> None:
    """With a short side above every photograph's, colour JPEGs pass through byte for byte."""
    ingest(params(short_side_px=2000, heldout_fraction=0.0), images=PHOTOS, shards=tmp_path / "shards")
    originals = dict(member for tar in TARS for member in members(tar))
    with tarfile.open(tmp_path / "shards" / "train" / "00000.tar") as tar:
        passed = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}  # type: ignore[union-attr]
    colour = {
        name: data
        for name, data in originals.items()
        if name.endswith(".jpg") and Image.open(io.BytesIO(data)).mode == "RGB"
    }
    assert len(colour) > 100
    assert passed == colour


def test_no_two_photographs_are_near_duplicates(tmp_path: Path) -> None:
    """The perceptual hash does not take different photographs for one."""
    ingest(params(duplicates="near", short_side_px=64), images=PHOTOS, shards=tmp_path / "shards")
    assert read_index(tmp_path / "shards").kept == 111


def test_faults_among_the_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five faults and an image without its text: 109 of 114 kept, a reject each with its reason, nothing elsewhere."""
    first, second, third = (list(members(tar)) for tar in TARS)
    cut, mute, page = (tar[0][0].partition(".")[0] for tar in (first, second, third))
    first = [(name, data[: len(data) // 2] if name == f"{cut}.jpg" else data) for name, data in first]
    second = [(name, data) for name, data in second if name != f"{mute}.txt"]
    third = [(name, b"<!DOCTYPE html><title>404</title>" if name == f"{page}.jpg" else data) for name, data in third]
    again = third[-3:]
    second += [("bomb.png", black_png(20_000)), ("bomb.txt", b"a black square")]
    third += [("../../x.jpg", first[3][1]), *again]
    images = tmp_path / "a" / "b" / "images"
    for name, content in zip(TARS, (first, second, third), strict=True):
        write_tar(images / name, content)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(images)

    ingest(params(), images=images, shards=tmp_path / "a" / "b" / "shards")

    shards = tmp_path / "a" / "b" / "shards"
    lines = [json.loads(line) for line in (shards / REJECTED).read_text().splitlines()]
    assert [(line["tar"], line["key"], line["reason"]) for line in lines] == [
        (TARS[0], cut, "broken image"),
        (TARS[1], "bomb", "too many pixels"),
        (TARS[2], page, "not JPEG, PNG or WebP"),
        (TARS[2], "../../x", "unsafe name"),
        (TARS[2], again[0][0].partition(".")[0], "duplicate key"),
    ]
    index = read_index(shards)
    assert (index.kept, index.read) == (109, 114)
    assert index.rejected == {line["reason"]: 1 for line in lines}
    assert "kept 109 of 114" in capsys.readouterr().out
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written and all(shards in path.parents for path in written)
    assert len(list(samples(shards / "train"))) + len(list(samples(shards / "heldout"))) == 109
