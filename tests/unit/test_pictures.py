"""One picture, one reader: every mode that Pillow has and every way in which our kinds of file hold it."""

import colorsys
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.toy_clips import write_folder
from un2clip.datasets.images import FORMATS, STRIP, check_image, decode, without_ends
from un2clip.datasets.loader import generator_view
from un2clip.datasets.random_access import locate, read_image
from un2clip.datasets.shards import samples
from un2clip.evaluation import readers
from un2clip.evaluation.dense.layouts import Photograph
from un2clip.evaluation.dense.masks import read_photograph
from un2clip.models.clip import CONFIG, load_clip

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
GREY, ALPHA = COLOURS[..., 0], COLOURS[..., 1]
WIDE = GREY.astype(np.uint16) * 256 + COLOURS[..., 2]
PALETTE = Image.fromarray(GREY % 8).convert("P")
PALETTE.putpalette([value for each in range(8) for value in (each * 30, 255 - each * 30, each)])
PALETTE_COLOURS = np.stack([GREY % 8 * 30, 255 - GREY % 8 * 30, GREY % 8], -1).astype(np.uint8)
GREYS = np.stack([GREY] * 3, -1)


def merged(mode: str, *bands: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(band) for band in bands])


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(colours * share + 255 * (1 - share))


def of_jfif(values: np.ndarray) -> np.ndarray:
    """JPEG's colours, by JFIF's own formula."""
    y, cb, cr = values.astype(float).transpose(2, 0, 1) - np.array([0, 128, 128])[:, None, None]
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.clip(0, 255)


def of_hsv(values: np.ndarray) -> np.ndarray:
    """By the standard library, pixel by pixel."""
    return 255 * np.apply_along_axis(lambda pixel: colorsys.hsv_to_rgb(*pixel), 2, values / 255)


#: Mode -> a picture of it, and its RGB by a formula.
MODES: dict[str, tuple[Image.Image, np.ndarray]] = {
    "1": (Image.fromarray(GREY > 99), np.where(GREYS > 99, 255, 0)),
    "L": (Image.fromarray(GREY), GREYS),
    "LA": (merged("LA", GREY, ALPHA), on_white(GREYS, ALPHA)),
    "La": (merged("LA", GREY, ALPHA).convert("La"), on_white(GREYS, ALPHA)),
    "P": (PALETTE, PALETTE_COLOURS),
    "PA": (PALETTE.convert("PA"), PALETTE_COLOURS),
    "RGB": (Image.fromarray(COLOURS), COLOURS),
    "RGBA": (merged("RGBA", *COLOURS.transpose(2, 0, 1), ALPHA), on_white(COLOURS, ALPHA)),
    "RGBa": (merged("RGBA", *COLOURS.transpose(2, 0, 1), ALPHA).convert("RGBa"), on_white(COLOURS, ALPHA)),
    "RGBX": (merged("RGBX", *COLOURS.transpose(2, 0, 1), ALPHA), COLOURS),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "YCbCr": (merged("YCbCr", *COLOURS.transpose(2, 0, 1)), of_jfif(COLOURS)),
    "HSV": (merged("HSV", *COLOURS.transpose(2, 0, 1)), of_hsv(COLOURS)),
    "LAB": (Image.new("LAB", (24, 16), (136, 208, 195)), np.broadcast_to([254, 0, 0], COLOURS.shape)),  # red
    "I": (Image.fromarray(WIDE.astype(np.int32)), GREYS),
    "I;16": (Image.fromarray(WIDE), GREYS),
    "I;16L": (Image.frombytes("I;16L", (24, 16), WIDE.astype("<u2").tobytes()), GREYS),
    "I;16B": (Image.frombytes("I;16B", (24, 16), WIDE.astype(">u2").tobytes()), GREYS),
    "I;16N": (Image.frombytes("I;16N", (24, 16), WIDE.tobytes()), GREYS),
    "F": (Image.fromarray(GREY.astype(np.float32)), GREYS),
}
#: Levels of 255 by which a conversion's own rounding may be off; LAB's is by a profile.
ROUNDING = {"La": 1, "RGBa": 1, "YCbCr": 1, "HSV": 1, "LAB": 12}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The picture as a file; b"" where the form cannot hold its mode."""
    file = io.BytesIO()
    try:
        image.save(file, form, **({"lossless": True} if form == "WEBP" else {}), **options)
    except (OSError, ValueError):
        return b""
    return file.getvalue()


def by_every_reader(content: bytes, folder: Path) -> dict[str, np.ndarray]:
    """What each reader of image files here makes of one file."""
    path, tar = folder / "image", folder / "0.tar"
    path.write_bytes(content)
    with tarfile.open(tar, "w") as file:
        for name, data in (("a.png", content), ("a.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    locate.cache_clear()
    checked, passed, _ = check_image(content, short_side_px=100, max_megapixels=1, max_aspect_ratio=20)
    found = {
        "ingest": checked,
        "what ingest writes": decode(passed),
        "decode": decode(path),
        "shards in order": next(samples(folder)).image,
        "shards at random": read_image(tar, 0)[1],
        "benchmarks": readers.read_image(path, "x"),
        "benchmarks' tars": next(readers.read_tars([tar], "txt"))[1].read(),
        "photographs": Image.fromarray(read_photograph(Photograph(id="a", image=path, mask=path))),
    }
    assert {image.mode for image in found.values()} == {"RGB"}
    return {name: np.asarray(image) for name, image in found.items()}


def test_every_mode_of_pillow_is_here() -> None:
    """Those that it lists; a new one is a picture that somebody may have."""
    assert set(MODES) == set(Image.MODES)
    assert all(image.mode == mode for mode, (image, _) in MODES.items())


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_one_picture(mode: str, monkeypatch) -> None:
    """Opened with that mode, whatever the kind of file: all readers give the picture that the formula says."""
    image, expected = MODES[mode]
    monkeypatch.setattr("un2clip.datasets.images.open_image", lambda source: image.copy())
    assert np.abs(np.asarray(decode(b"")).astype(float) - expected).max() <= ROUNDING.get(mode, 0)


@pytest.mark.parametrize("mode", MODES)
def test_every_reader_gives_the_same_picture(mode: str, tmp_path: Path) -> None:
    """As each kind of file that can hold the mode, upright and turned: the same to the bit; a PNG's by the formula."""
    image, expected = MODES[mode]
    turned = Image.Exif()
    turned[0x0112] = 6
    held = 0
    for form, exif in itertools.product(FORMATS, (None, turned)):
        if content := encoded(image, form, **({"exif": exif} if exif else {})):
            found = by_every_reader(content, tmp_path)
            for name, seen in found.items():
                np.testing.assert_array_equal(seen, found["ingest"], f"{form} {name}")
            if form == "PNG":
                right = np.rot90(expected, -1) if exif else expected
                assert np.abs(found["decode"].astype(float) - right).max() <= ROUNDING.get(mode, 0), (form, exif)
            held += 1
    assert held >= 2 or mode == "La", "WebP holds nearly every mode"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_png_says_which_colour_is_see_through(mode: str, tmp_path: Path) -> None:
    """tRNS of one value, or of a palette's entries: there it is white, for every reader alike."""
    image, expected = MODES[mode]
    values = np.asarray(image)
    clear = tuple(values[3, 4].tolist()) if mode == "RGB" else int(values[3, 4])
    where = (values == clear).all(-1) if mode == "RGB" else values == clear
    found = by_every_reader(encoded(image, "PNG", transparency=clear), tmp_path)
    for name, seen in found.items():
        np.testing.assert_array_equal(seen, np.where(where[..., None], 255, expected), name)


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1), (3, 9_999), (40, 40 * STRIP + 1)])
def test_a_strip_is_cut_before_it_is_enlarged(width: int, height: int, tmp_path: Path) -> None:
    """The middle is the same picture in both views; what the view makes of it in between has a bound."""
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    middle = without_ends(image)
    short, long = sorted(middle.size)
    assert short == min(width, height) and long == STRIP * short
    left, top = (width - middle.width) // 2, (height - middle.height) // 2
    assert middle.tobytes() == image.crop((left, top, left + middle.width, top + middle.height)).tobytes()
    write_folder(tmp_path, "gelu")
    for view in (generator_view(32), load_clip(tmp_path).preprocess):
        assert view(image).shape == (3, 32, 32) and torch.equal(view(image), view(middle))


@pytest.mark.parametrize("size", [(32, 32), (24, 16), (31, 977), (640, 20), (20 * 30, 30), (STRIP, 1)])
def test_other_pictures_are_seen_as_before(size: tuple[int, int]) -> None:
    """To the bit what resizing and cropping give, up to the ratio that ingest lets through and beyond."""
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    assert without_ends(image) is image
    resized = v2.functional.resize(image, 32, v2.InterpolationMode.BICUBIC, antialias=True)
    expected = v2.functional.to_dtype(v2.functional.to_image(v2.functional.center_crop(resized, 32)), scale=True)
    assert torch.equal(generator_view(32)(image), v2.functional.normalize(expected, [0.5] * 3, [0.5] * 3))


def test_a_squashed_view_keeps_the_ends(tmp_path: Path) -> None:
    """SigLIP sees the whole picture, however long it is: it never makes more of it than its square."""
    write_folder(tmp_path, "siglip")
    half = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 500)[None])
    seen = load_clip(tmp_path).preprocess(half)
    assert seen[:, :, :14].max() < -0.99 and seen[:, :, -14:].min() > 0.99


def test_a_padded_view_of_a_line_has_the_line(tmp_path: Path) -> None:
    """The longest side fitted: what is narrower than a pixel of the view would have none at all."""
    write_folder(tmp_path, "gelu")
    config = json.loads((tmp_path / CONFIG).read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (tmp_path / CONFIG).write_text(json.dumps(config))
    seen = load_clip(tmp_path).preprocess(Image.new("RGB", (1, 5_000), "white"))
    assert seen.shape == (3, 32, 32) and (seen > 1).any(0).sum() == 32
