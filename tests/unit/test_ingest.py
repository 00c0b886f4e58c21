"""`ingest`: every input sample is kept, or rejected with the right reason; hostile tars do no harm."""

import hashlib
import io
import json
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from un2clip.config import build, read_params
from un2clip.datasets.captions import CaptionStatistics, WordCounts
from un2clip.datasets.duplicates import NearIndex, perceptual_hash
from un2clip.datasets.shards import read_index, samples
from un2clip.errors import UserError
from un2clip.stages.ingest import REJECTED, Ingest, ingest

DEFAULTS: dict[str, Any] = {
    "short_side_px": 32,
    "max_megapixels": 64.0,
    "max_aspect_ratio": 20.0,
    "samples_per_shard": 4,
    "heldout_fraction": 0.0,
    "duplicates": "keep",
    "near_distance": 4,
    "processes": 1,
    "engine": "processes",
}
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
Member = tuple[str | tarfile.TarInfo, bytes]


def picture(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    """A random picture of soft blobs, so that it survives JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def image_file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels: decoding it fails, reading its header does not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def wrong_check_sum(png: bytes) -> bytes:
    """The PNG with one bit changed in the check sum of its pixels, which decoding alone does not notice."""
    last = png.index(b"IEND") - 5
    return png[:last] + bytes([png[last] ^ 1]) + png[last + 1 :]


def good(key: str, seed: int | None = None) -> list[Member]:
    """Image and text of one good sample; its picture follows from the key."""
    seed = zlib.crc32(key.encode()) if seed is None else seed
    return [(f"{key}.png", image_file(picture(seed))), (f"{key}.txt", f"the caption of {key}".encode())]


def link(name: str, kind: bytes = tarfile.SYMTYPE, target: str = "/etc/passwd") -> Member:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar_bytes(members: Iterable[Member]) -> bytes:
    """A tar of the members, in their order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, *samples_: list[Member]) -> None:
    """Write a tar of samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(member for sample in samples_ for member in sample))


def run(tmp_path: Path, **changes: Any) -> tuple[list[str], Counter[str]]:
    """Ingest tmp_path/images; return the keys kept (held-out first) and reason -> count."""
    params = build(Ingest, DEFAULTS | changes, "ingest")
    ingest(params, images=tmp_path / "images", shards=tmp_path / "out" / "shards")
    shards = tmp_path / "out" / "shards"
    kept = [sample.key for split in sorted(shards.iterdir()) if any(split.glob("*.tar")) for sample in samples(split)]
    reasons = Counter(reject["reason"] for reject in rejects(tmp_path))
    index = read_index(shards)
    assert (index.kept, index.rejected) == (len(kept), dict(reasons)), "index, shards and list of rejects agree"
    return kept, reasons


def rejects(tmp_path: Path) -> list[dict[str, str]]:
    """The lines of rejected.jsonl."""
    return [json.loads(line) for line in (tmp_path / "out" / "shards" / REJECTED).read_text().splitlines()]


def only_image(tmp_path: Path) -> Image.Image:
    """The one image of the train split."""
    (sample,) = samples(tmp_path / "out" / "shards" / "train")
    return sample.image


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_faults_are_counted_and_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five faults give exact counts and reasons, an image needs no text, and nothing is written beside the output."""
    jpeg = image_file(picture(1), "JPEG")
    write_tar(
        tmp_path / "images" / "00000.tar",
        good("a"),
        [("cut.jpg", jpeg[: len(jpeg) // 2]), ("cut.txt", b"half a picture")],
        [("mute.jpg", jpeg)],
        [("page.jpg", HTML), ("page.txt", b"a page")],
        [("bomb.png", png_header(20_000, 20_000)), ("bomb.txt", b"a bomb")],
        [("../../x.jpg", jpeg)],
    )
    write_tar(tmp_path / "images" / "00001.tar", good("b"), good("c"), good("b"))
    before = files_below(tmp_path)
    (tmp_path / "out" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "deep" / "er")

    kept, reasons = run(tmp_path)

    assert kept == ["a", "mute", "b", "c"]
    assert reasons == {
        "broken image": 1,
        "not JPEG, PNG or WebP": 1,
        "too many pixels": 1,
        "unsafe name": 1,
        "duplicate key": 1,
    }
    assert [(reject["tar"], reject["key"]) for reject in rejects(tmp_path)] == [
        ("00000.tar", "cut"),
        ("00000.tar", "page"),
        ("00000.tar", "bomb"),
        ("00000.tar", "../../x"),
        ("00001.tar", "b"),
    ]
    assert "kept 4 of 9" in capsys.readouterr().out
    assert set(files_below(tmp_path)) - set(before) == {
        f"out/shards/{name}" for name in ("train/00000.tar", "index.json", "rejected.jsonl")
    }


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.txt", b"no image")], "missing image"),
        ([("x.gif", b"GIF89a"), ("x.txt", b"a")], "missing image"),
        ([*good("x"), ("x.webp", b"")], "two images"),
        ([("x.png", image_file(picture(0))), ("x.txt", "a cat".encode("utf-16"))], "text is not UTF-8"),
        ([("x.png", image_file(picture(0))), ("x.txt", "a cat".encode("utf-16-le"))], "control characters in text"),
        ([("x.png", image_file(picture(0))), ("x.txt", b"a \x1b[2J cat")], "control characters in text"),
        ([("x.png", image_file(picture(0))[:20]), ("x.txt", b"a")], "broken image"),
        ([("x.png", image_file(picture(0, 1, 21))), ("x.txt", b"a")], "aspect ratio too large"),
        ([("x.png", png_header(2_000, 99)), ("x.txt", b"a")], "aspect ratio too large"),
        ([("x.png", image_file(picture(0))), ("x.txt", b"caf\xe9")], "text is not UTF-8"),
        ([*good("x"), ("x.json", b"{")], "broken json"),
        ([*good("x"), ("x.json", b"[" * 100_000)], "broken json"),
        ([*good("x"), ("x.json", b"[1]")], "broken json"),
        ([("x.png", b""), ("x.txt", b"a")], "not JPEG, PNG or WebP"),
        ([("x.png", b"GIF89a" + b"\0" * 50), ("x.txt", b"a")], "not JPEG, PNG or WebP"),
        ([("x.jpg", image_file(picture(0), "GIF")), ("x.txt", b"a")], "not JPEG, PNG or WebP"),
        ([("x.png", png_header(24, 16)), ("x.txt", b"a")], "broken image"),
        ([("x.png", png_header(9_000, 9_000)), ("x.txt", b"a")], "too many pixels"),
        ([("x.png", wrong_check_sum(image_file(picture(0)))), ("x.txt", b"a")], "broken image"),
        ([("x.webp", image_file(picture(0), "WEBP")[:-20]), ("x.txt", b"a")], "broken image"),
        (good("/tmp/x"), "unsafe name"),
        (good("y/../x"), "unsafe name"),
        (good("C:\\x"), "unsafe name"),
        (good("x\x1b[2J"), "unsafe name"),
        ([link("x.png"), ("x.txt", b"a")], "link or special file"),
        ([link("x.png", tarfile.LNKTYPE, "ok.png"), ("x.txt", b"a")], "link or special file"),
        ([link("x.png", tarfile.CHRTYPE), ("x.txt", b"a")], "link or special file"),
        ([link("x.txt", tarfile.FIFOTYPE), ("x.png", image_file(picture(0)))], "link or special file"),
        ([link("passwd")], "link or special file"),
        ([("README", b"read me")], "no extension"),
    ],
)
def test_each_fault_has_its_reason(tmp_path: Path, members: list[Member], reason: str) -> None:
    """One bad sample between two good ones is one reject with its reason, and costs no other."""
    write_tar(tmp_path / "images" / "a.tar", good("ok"), members, good("ok2"))
    assert run(tmp_path) == (["ok", "ok2"], {reason: 1})


def test_a_member_too_large_is_not_read(tmp_path: Path) -> None:
    """A file with more bytes than the largest image has pixels x 4 is passed over by its header."""
    write_tar(tmp_path / "images" / "a.tar", good("ok"), [("x.png", b"\0" * 50_000), ("x.txt", b"a")], good("ok2"))
    assert run(tmp_path, max_megapixels=0.01) == (["ok", "ok2"], {"too many bytes": 1})


def test_a_large_image_is_refused_by_its_header(tmp_path: Path) -> None:
    """The pixel limit is the parameter's: a PNG without pixels is too large at 2 MP and broken at 64 MP."""
    write_tar(tmp_path / "images" / "a.tar", good("ok"), [("x.png", png_header(2_000, 1_001)), ("x.txt", b"a")])
    assert run(tmp_path, max_megapixels=2.0)[1] == {"too many pixels": 1}
    assert run(tmp_path, max_megapixels=64.0)[1] == {"broken image": 1}


@pytest.mark.parametrize("between", [[], [("z.png", image_file(picture(9))), ("z.txt", b"z")]])
def test_duplicate_keys_are_samples_of_their_own(tmp_path: Path, between: list[Member]) -> None:
    """The same key twice, side by side or apart, is two input samples: the first kept, the second rejected."""
    write_tar(tmp_path / "images" / "a.tar", good("x", 1), between, good("x", 2))
    kept, reasons = run(tmp_path)
    assert kept == ["x"] + ["z"] * bool(between)
    assert reasons == {"duplicate key": 1}


def test_names_are_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    """Upper case, `./`, folders and further dots; entries of another system's tar break no sample."""
    png = image_file(picture(0))
    write_tar(
        tmp_path / "images" / "a.tar",
        [("./a.PNG", png), ("./._a.txt", b"finder"), ("./a.TXT", b"one")],
        [("d/a.jpeg", image_file(picture(1), "JPEG")), ("d/a.txt", b"two"), ("d/a.seg.png", b"extra, not kept")],
        [link("d.dir", tarfile.DIRTYPE, "")],
    )
    assert run(tmp_path) == (["a", "d/a"], {})


def test_nothing_to_change_keeps_the_bytes(tmp_path: Path) -> None:
    """Upright RGB of the right size is passed on as it is; the extension follows the content; json is kept."""
    jpeg, webp = image_file(picture(1), "JPEG", quality=50), image_file(picture(2), "WEBP")
    write_tar(
        tmp_path / "images" / "a.tar",
        [("a.png", jpeg), ("a.txt", "\ufeff a caption \n".encode()), ("a.json", b'{"b": 1, "a": 2}')],
        [("b.webp", webp), ("b.txt", b"b")],
    )
    run(tmp_path, short_side_px=16)
    with tarfile.open(tmp_path / "out" / "shards" / "train" / "00000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert content == {
        "a.jpg": jpeg, "a.txt": b"a caption", "a.json": b'{"a": 2, "b": 1}', "b.webp": webp, "b.txt": b"b",
    }  # fmt: skip


@pytest.mark.parametrize(("width", "height", "size"), [(64, 48, (21, 16)), (48, 65, (16, 22)), (12, 90, (12, 90))])
def test_short_side_is_shrunk_and_never_enlarged(
    tmp_path: Path, width: int, height: int, size: tuple[int, int]
) -> None:
    """The result is Pillow's own bicubic of that size, without a further loss."""
    original = picture(3, width, height)
    write_tar(tmp_path / "images" / "a.tar", [("a.png", image_file(original)), ("a.txt", b"a")])
    run(tmp_path, short_side_px=16)
    assert only_image(tmp_path).size == size
    np.testing.assert_array_equal(
        np.asarray(only_image(tmp_path)), np.asarray(original.resize(size, Image.Resampling.BICUBIC))
    )


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", list(UPRIGHT))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """All eight orientations of EXIF, against the standard's table in numpy; the tag is gone afterwards."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_file(picture(4), exif=exif)
    write_tar(tmp_path / "images" / "a.tar", [("a.png", data), ("a.txt", b"a")])
    run(tmp_path)
    image = only_image(tmp_path)
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](np.asarray(picture(4))))
    assert image.getexif().get(0x0112, 1) == 1


def test_broken_exif_costs_no_image(tmp_path: Path) -> None:
    """EXIF that cannot be read says nothing about the pixels."""
    data = image_file(picture(4), "JPEG", exif=b"Exif\0\0garbage, not TIFF")
    write_tar(tmp_path / "images" / "a.tar", [("a.jpg", data), ("a.txt", b"a")])
    assert run(tmp_path) == (["a"], {})


GREY = np.arange(24 * 16, dtype=np.uint8).reshape(16, 24)


@pytest.mark.parametrize(
    ("image", "red"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        (Image.fromarray(GREY).convert("P"), GREY),
        (Image.merge("LA", [Image.new("L", (24, 16), 0), Image.fromarray(GREY)]), 255 - GREY),
        (Image.merge("RGBA", [*picture(5).split()[:3], Image.new("L", (24, 16), 0)]), np.full_like(GREY, 255)),
        (Image.fromarray(GREY > 99), np.where(GREY > 99, 255, 0)),
    ],
    ids=["grey", "16 bit", "palette", "half see-through", "see-through", "1 bit"],
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, red: np.ndarray) -> None:
    """Grey, 16-bit, palette and 1-bit keep their values; see-through pixels lie on white."""
    write_tar(tmp_path / "images" / "a.tar", [("a.png", image_file(image)), ("a.txt", b"a")])
    run(tmp_path)
    np.testing.assert_array_equal(np.asarray(only_image(tmp_path))[..., 0], red)


def test_an_animation_becomes_its_first_frame(tmp_path: Path) -> None:
    """A second frame is not carried into the shards."""
    data = image_file(picture(1), "WEBP", save_all=True, append_images=[picture(2)], lossless=True)
    write_tar(tmp_path / "images" / "a.tar", [("a.webp", data), ("a.txt", b"a")])
    run(tmp_path)
    np.testing.assert_array_equal(np.asarray(only_image(tmp_path)), np.asarray(picture(1)))


def test_a_tar_cut_anywhere_keeps_what_is_whole(tmp_path: Path) -> None:
    """At every cut the samples that end before it are kept, the one within is rejected, the tar is reported."""
    content = tar_bytes(member for key in "abc" for member in good(key))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith(".txt")]
    tar_path = tmp_path / "images" / "cut.tar"
    write_tar(tmp_path / "images" / "whole.tar", good("ok"))
    for cut in [*range(0, ends[-1] + 600, 173), *ends]:
        tar_path.write_bytes(content[:cut])
        kept, reasons = run(tmp_path)
        whole = sum(end <= cut for end in ends)
        assert kept == [*"abc"[:whole], "ok"], cut
        assert set(reasons) <= {"cut off"} and reasons.total() <= 1, cut
        assert list(read_index(tmp_path / "out" / "shards").damaged_tars) == ["cut.tar"], cut


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda tar: HTML * 30, "ReadError"),
        (lambda tar: b"", "empty file"),
        (lambda tar: zlib.compress(tar), "ReadError"),
        (lambda tar: tar + tar, "more data after the end mark"),
        (lambda tar: tar + bytes(20_000), "a lost tail"),
        (lambda tar: tar.replace(b"b.png\0", b"B.png\0"), "broken header at byte"),
    ],
    ids=["page", "empty", "compressed", "two in one", "zeros", "broken header"],
)
def test_a_damaged_tar_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, what: str) -> None:
    """What cannot be read of a tar is named in the index and on the screen, and costs no other tar."""
    write_tar(tmp_path / "images" / "b.tar", good("ok"))
    (tmp_path / "images" / "a.tar").write_bytes(damage(tar_bytes([*good("a"), *good("b")])))
    kept, reasons = run(tmp_path)
    assert kept[-1] == "ok" and not reasons
    (report,) = read_index(tmp_path / "out" / "shards").damaged_tars.items()
    assert report[0] == "a.tar" and what in report[1]
    assert "damaged tar a.tar" in capsys.readouterr().out


def test_headers_that_go_round_in_circles_end(tmp_path: Path) -> None:
    """A negative size, which would send the reader back to the same header, ends the tar."""
    content = bytearray(tar_bytes([*good("a"), *good("b")]))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        start = tar.getmembers()[2].offset
    content[start + 124 : start + 136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tar").write_bytes(content)
    assert run(tmp_path) == (["a"], {})
    assert list(read_index(tmp_path / "out" / "shards").damaged_tars) == ["a.tar"]


def test_two_runs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, index and list of rejects do not depend on the time or on how many threads checked them."""
    for tar in range(3):
        bad = [(f"{tar}bad.png", HTML), (f"{tar}bad.txt", b"x")]
        write_tar(tmp_path / "images" / f"{tar}.tar", *(good(f"{tar}-{i}") for i in range(20)), bad)
    outputs = []
    for workers in (1, 8):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        run(tmp_path, short_side_px=8, heldout_fraction=0.3, duplicates="near")
        outputs.append(files_below(tmp_path / "out"))
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 15


def test_split_by_hash_of_the_image_file(tmp_path: Path) -> None:
    """Held out is exactly what the hash of the file says, whatever the key and the other parameters."""
    seeds = [*range(40), *range(40)]
    write_tar(tmp_path / "images" / "a.tar", *(good(f"{i:03d}", seed) for i, seed in enumerate(seeds)))
    expected = {
        f"{i:03d}"
        for i, seed in enumerate(seeds)
        if int(hashlib.sha256(image_file(picture(seed))).hexdigest()[:12], 16) / 16**12 < 0.3
    }
    assert 4 < len(expected) < 50
    for short_side_px in (16, 8):
        run(tmp_path, heldout_fraction=0.3, short_side_px=short_side_px)
        heldout = {sample.key for sample in samples(tmp_path / "out" / "shards" / "heldout")}
        assert heldout == expected


def test_split_folders_are_the_splits(tmp_path: Path) -> None:
    """Where the source has train/ and heldout/, they stay what they are."""
    write_tar(tmp_path / "images" / "train" / "a.tar", good("t0"), good("t1"))
    write_tar(tmp_path / "images" / "heldout" / "a.tar", good("h0"), good("h0"))
    assert run(tmp_path, heldout_fraction=0.9) == (["h0", "t0", "t1"], {"duplicate key": 1})
    index = read_index(tmp_path / "out" / "shards")
    assert {split: index.count(split) for split in index.splits} == {"heldout": 1, "train": 2}
    assert rejects(tmp_path)[0]["tar"] == "heldout/a.tar"


@pytest.mark.parametrize(
    ("duplicates", "kept", "reasons"),
    [
        ("keep", ["a", "b", "c", "d"], {}),
        ("exact", ["a", "c", "d"], {"duplicate image": 1}),
        ("near", ["a", "d"], {"duplicate image": 1, "near duplicate image": 1}),
    ],
)
def test_duplicate_pictures(tmp_path: Path, duplicates: str, kept: list[str], reasons: dict[str, int]) -> None:
    """Same pixels in another file format are exact, a rough JPEG of the picture is near, another is neither."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    one, other = (Image.fromarray(each).resize((96, 64)) for each in noise)
    files = [
        ("a.png", image_file(one)),
        ("b.webp", image_file(one, "WEBP", lossless=True)),
        ("c.jpg", image_file(one, "JPEG", quality=40)),
        ("d.png", image_file(other)),
    ]
    write_tar(tmp_path / "images" / "a.tar", *([file, (f"{file[0][0]}.txt", b"x")] for file in files))
    assert run(tmp_path, duplicates=duplicates, short_side_px=64) == (kept, reasons)


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 7, 12, 31])
def test_near_index_finds_what_trying_all_finds(distance: int) -> None:
    """Against a search through all hashes: found if and only if one is within the distance."""
    rng = np.random.default_rng(distance)
    index, added, found = NearIndex(distance), [], 0
    for _ in range(300):
        flips = rng.choice(64, rng.integers(0, distance + 4), replace=False)
        base = added[rng.integers(len(added))] if added and rng.random() < 0.7 else int(rng.integers(2**63)) * 2 + 1
        perceptual = base ^ sum(1 << int(bit) for bit in flips)
        near = [str(other) for other in added if (other ^ perceptual).bit_count() <= distance]
        key = index.find(perceptual)
        assert key in near if near else key is None
        found += bool(near)
        if not near:
            index.add(perceptual, str(perceptual))
            added.append(perceptual)
    assert found > 10 and len(added) > 3


def test_perceptual_hash_is_that_of_imagehash() -> None:
    """Our eight lines agree with the library, bit for bit, on pictures of several sizes."""
    imagehash = pytest.importorskip("imagehash", reason="ImageHash, the oracle, is not installed")
    for seed in range(40):
        image = picture(seed, 20 + 7 * seed, 150 - 2 * seed)
        assert f"{perceptual_hash(image):016x}" == str(imagehash.phash(image)), seed


def test_caption_statistics_by_hand() -> None:
    """Mean, median and the most common words of four captions in two parts, counted by hand."""
    statistics = CaptionStatistics()
    for captions in (["a red ball", "A cat", "a red ball"], ["two small dogs on a mat"]):
        statistics.add(WordCounts.of(captions))
    summary = statistics.summary(unique=3)
    assert (summary["n"], summary["unique"], summary["words_mean"], summary["words_median"]) == (4, 3, 3.5, 3.0)
    assert list(summary["common_words"].items())[:3] == [("a", 4), ("ball", 2), ("red", 2)]


def test_no_usable_sample_leaves_the_older_output(tmp_path: Path) -> None:
    """The error says how many and why; the older output stays, and nothing half-written."""
    write_tar(tmp_path / "images" / "a.tar", good("a"))
    run(tmp_path)
    before = files_below(tmp_path / "out")
    write_tar(tmp_path / "images" / "a.tar", [("page.jpg", HTML), ("page.txt", b"x")], [("lost.txt", b"x")])
    with pytest.raises(
        UserError, match="no usable sample.*kept 0 of 2.*1: missing image.*1: not JPEG, PNG or WebP.*a.tar 'page'"
    ):
        run(tmp_path)
    assert files_below(tmp_path / "out") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shards"]


def test_an_older_output_is_replaced_whole(tmp_path: Path) -> None:
    """No shard of a larger run before survives."""
    write_tar(tmp_path / "images" / "a.tar", *(good(f"{i}") for i in range(9)))
    run(tmp_path)
    write_tar(tmp_path / "images" / "a.tar", good("new"))
    assert run(tmp_path) == (["new"], {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shards"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    """A mistyped output path costs nobody a folder."""
    write_tar(tmp_path / "images" / "a.tar", good("a"))
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="was not made by ingest"):
        run(tmp_path)
    for shards in (tmp_path / "images", tmp_path):
        with pytest.raises(UserError, match="would replace its own source"):
            ingest(build(Ingest, DEFAULTS, "ingest"), images=tmp_path / "images", shards=shards)
    assert (tmp_path / "out" / "shards" / "thesis.tex").exists() and (tmp_path / "images" / "a.tar").exists()


@pytest.mark.parametrize(
    ("tars", "message"),
    [
        ([], "images does not exist; give a folder of tars"),
        (["photos/a.tar"], "images has no .*; give a folder of tars"),
        (["train/a.tar"], "images has no .*tars in both train/ and heldout/"),
        (["a.tar", "train/a.tar", "heldout/a.tar"], "keep one of the two layouts"),
    ],
)
def test_a_source_without_tars_names_what_is_wanted(tmp_path: Path, tars: list[str], message: str) -> None:
    """Missing, empty, half a split and two layouts at once: one line with the folder and the fix."""
    for tar in tars:
        write_tar(tmp_path / "images" / tar, good("a"))
    with pytest.raises(UserError, match=message):
        run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_side_px": 0}, "ingest.short_side_px must be at least 1, got 0"),
        ({"max_megapixels": 500.0}, r"ingest.max_megapixels must be in \(0, 89\]"),
        ({"samples_per_shard": 0}, "ingest.samples_per_shard must be at least 1, got 0"),
        ({"heldout_fraction": 1.0}, r"ingest.heldout_fraction must be in \[0, 1\), got 1.0"),
        ({"duplicates": "fuzzy"}, "ingest.duplicates must be one of keep, exact, near, got 'fuzzy'"),
        ({"near_distance": 32}, "ingest.near_distance must be 0 to 31 bits"),
    ],
)
def test_a_parameter_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    """The message has the parameter's full name and what is allowed."""
    with pytest.raises(UserError, match=message):
        build(Ingest, DEFAULTS | change, "ingest")


def test_params_yaml_has_exactly_these_parameters() -> None:
    """The checked-in section builds."""
    build(Ingest, read_params(Path(__file__).parents[2] / "params.yaml")["ingest"], "ingest")
