"""SugarCrepe (arXiv 2306.14610): is an image nearer to its caption than to a hard negative of it?

How the number misleads: chance is 50 %, and the score is the mean over all rows, where papers print the seven
types, or their unweighted mean. It tests the text tower, which no method here changes, as much as the image tower.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.errors import UserError, cause
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.readers import Picture, read_pixels
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.files.texts import read_json
from un2clip.models.clip import Clip

#: COCO's archive has the first, and so has clip-benchmark.
IMAGE_FOLDERS = ("val2017", "images")
MODEL: Model = "clip"
PROTOCOL = "fp32; right if nearer to the caption than to the negative; ties are wrong"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image, its caption and a hard negative. The id is image@row: rows of one image are parts of a sample."""

    id: str
    type: str
    image: Path
    caption: str
    negative_caption: str


def run(clip: Clip, folder: Path, *, batch_size: int, spread: Spread = alone) -> BenchmarkResult:
    """Value 1 for every row whose cosine with the caption is above that with the negative.

    Args:
        folder: *.json beside the images' folder. A file is {"0": {filename, caption, negative_caption}, ...} and
            its name the type, as published (add_att.json, ...), or a list of such rows that have a `type` each.
    """
    rows = read_rows(folder)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    measured = spread("sugarcrepe", batches, partial(_read, clip.preprocess), partial(_caption_wins, clip))
    found = [wins for batch in measured for wins in batch]
    items = tuple(Item(id=row.id, type=row.type, value=float(wins)) for row, wins in zip(rows, found, strict=True))
    return BenchmarkResult(unit="%", protocol=PROTOCOL, items=items)


def _read(preprocess: Callable[[Image.Image], Tensor], rows: list[Row]) -> dict[str, Any]:
    pictures = (Picture(row.image, str(row.image)) for row in rows)
    return {"rows": rows, "pixel_values": read_pixels(preprocess, pictures)}


def _caption_wins(clip: Clip, batch: dict[str, Any]) -> list[bool]:
    rows: list[Row] = batch["rows"]
    texts = [text for row in rows for text in (row.caption, row.negative_caption)]
    image_features = normalize(clip.embed(batch["pixel_values"], [row.image for row in rows]), dim=-1)[:, :, None]
    text_features = normalize(clip.embed_texts(texts), dim=-1).unflatten(0, (-1, 2))
    caption, negative = (text_features @ image_features)[:, :, 0].unbind(dim=1)
    return (caption > negative).tolist()


def read_rows(folder: Path) -> list[Row]:
    """Read and check all rows, files in order of name.

    Raises:
        UserError: there is no file or no row, a file is not in either layout, or a row's image is missing.
    """
    trees = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    files = sorted(folder.glob("[!.]*.json"))
    if not files or not trees:
        raise UserError(f"{folder} is not SugarCrepe: it needs *.json and a folder named {' or '.join(IMAGE_FOLDERS)}")
    rows = [row for file in files for row in _rows(file, trees[0])]
    if not rows:
        raise UserError(f"{folder} has no row")
    return rows


def _rows(file: Path, tree: Path) -> Iterator[Row]:
    content = read_json(file)
    if not isinstance(content, dict | list):
        raise UserError(f"{file} must be a mapping or a list of rows, got {type(content).__name__}")
    for key, row in content.items() if isinstance(content, dict) else enumerate(content):
        where = f"{file}, row {key}"
        texts: dict[str, Any] = {"type": file.stem} | row if isinstance(row, dict) else {}
        wanted: list[Any] = [texts.get(name) for name in ("type", "filename", "caption", "negative_caption")]
        if not all(isinstance(text, str) and text.strip() for text in wanted):
            raise UserError(f"{where}: needs filename, caption and negative_caption, each a text")
        kind, filename, caption, negative_caption = wanted
        if Path(filename).name != filename or not os.path.isfile(tree / filename):
            raise UserError(f"{where}: no image {cause(tree / filename)}")
        yield Row(
            id=f"{filename}@{file.stem} {key}",
            type=kind,
            image=tree / filename,
            caption=caption,
            negative_caption=negative_caption,
        )
