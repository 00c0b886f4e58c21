"""The one door for image files: what is opened at all, and the check of one that may be hostile or broken.

Pillow has many readers, some of which start other programs (EPS looks for Ghostscript), and picks one by the file's
content, whatever its name. So every image is opened here, by three of them.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from un2clip.datasets.tars import Rejected

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WEBP")
#: What published benchmarks come in besides, and Pillow decodes by itself: GTSRB is PPM.
PUBLISHED_FORMATS = (*FORMATS, "GIF", "PPM")
#: How many times the short side a picture may be long before views leave its ends out. More than any panorama, and a
#: view of 768 px of it is 768 x 24,576 px at most, 54 MiB.
STRIP = 32
_BEGINNING = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP", re.DOTALL)  # of the FORMATS


def open_image(source: bytes | Path) -> Image.Image:
    """Read the header of a JPEG, PNG or WebP; Pillow tries no other of its many readers on what may be hostile."""
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


@contextmanager
def published_formats_only() -> Iterator[None]:
    """While it is open, Pillow knows PUBLISHED_FORMATS alone: for libraries that call `Image.open` themselves."""
    Image.init()  # registers every reader now, or Pillow would do so when none fits
    registered = Image.ID[:]
    Image.ID[:] = [name for name in registered if name in PUBLISHED_FORMATS]
    try:
        yield
    finally:
        Image.ID[:] = registered


def decode(source: bytes | Path) -> Image.Image:
    """The image as whoever looks at it sees it, in RGB: the same picture for training and for every benchmark.

    Upright by its EXIF orientation, 16 bits of grey as their upper 8, what is see-through on white, of an animation
    the first frame.

    Raises:
        Exception: on hostile bytes Pillow's readers raise nearly anything.
    """
    with open_image(source) as image:
        image.load()
        seen = _seen(image)
        return seen.copy() if seen is image else seen  # without the file, and what else its reader holds


def check_image(
    data: bytes, short_side_px: int, max_megapixels: float, max_aspect_ratio: float
) -> tuple[Image.Image, bytes, str]:
    """Decode an image to the end as `decode` does; its short side at most `short_side_px`.

    Returns:
        The image (RGB), its file's bytes and extension. The bytes are the given ones if nothing had to
        change. Otherwise they are PNG: it loses nothing, so no encoder learns the artefacts of a second
        compression and no quality number is needed. It costs about four times a JPEG's size; CC3M is
        usually distributed small enough to keep its bytes.

    Raises:
        Rejected: "not JPEG, PNG or WebP", "too many pixels" or "aspect ratio too large" (the header says so; nothing is
            decoded), "broken image".
    """
    try:
        header = open_image(data)
        _check_size(header, max_megapixels, max_aspect_ratio)
        header.verify()  # the check sums of PNG, which decoding skips; the file must be opened again after it
        original = open_image(data)
        original.load()
        image = _shrunk(_seen(original), short_side_px)
        if image is original and getattr(original, "n_frames", 1) == 1:
            return image, data, _EXTENSIONS[original.format or ""]
    except Rejected:
        raise
    except Image.UnidentifiedImageError:
        if _BEGINNING.match(data):
            raise Rejected("broken image", f"its header is damaged or cut off; it has {len(data)} bytes") from None
        raise Rejected("not JPEG, PNG or WebP", f"it begins with {data[:16]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit, on opening
        raise Rejected("too many pixels", str(error)) from None
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise Rejected("broken image", f"{type(error).__name__}: {error}") from None
    image.info.clear()  # colour profile, EXIF, transparency: none of it holds for the new file
    file = io.BytesIO()
    image.save(file, "PNG")
    return image, file.getvalue(), "png"


def without_ends(image: Image.Image, ratio: int = STRIP) -> Image.Image:
    """What a square view from the middle can show of a strip: its ends are cut off before anything is enlarged.

    Of 1 x 100,000 px a view of 768 px would otherwise be made 768 x 76,800,000 first, and cut then. Pictures whose
    sides differ less than `ratio` times, among them all that `ingest` lets through, come back as they are.
    """
    keep = ratio * min(image.size)
    if max(image.size) <= keep:
        return image
    left, top = (max(0, side - keep) // 2 for side in image.size)
    return image.crop((left, top, left + min(image.width, keep), top + min(image.height, keep)))


def _check_size(header: Image.Image, max_megapixels: float, max_aspect_ratio: float) -> None:
    size = f"{header.width} x {header.height}"
    if header.width * header.height > max_megapixels * 1e6:
        raise Rejected("too many pixels", f"{size}, above {max_megapixels} megapixels")
    if max(header.size) > max_aspect_ratio * min(header.size):
        raise Rejected("aspect ratio too large", f"{size}, above {max_aspect_ratio} to 1")


# Each of the following returns the same object if there is nothing to do.


def _seen(image: Image.Image) -> Image.Image:
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be seen."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # broken EXIF says nothing about the pixels, which every reader shows as they are
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; what is see-through lies on white, as browsers show it."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")  # the only way that Pillow has from it
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as its upper 8 bits, see-through where it has the value that its file says; Pillow's own conversion
    clips at 255."""
    values = np.asarray(image)
    grey = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if not isinstance(clear := image.info.get("transparency"), int):
        return grey
    return Image.merge("LA", [grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))])


def _shrunk(image: Image.Image, short_side_px: int) -> Image.Image:
    """The image with its short side at most `short_side_px`, its shape kept; never enlarged."""
    scale = short_side_px / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
