"""Images with labels of their attributes, in parts (train and test) and in either of two layouts.

- PART/*.tar in webdataset form: an image and .json a sample, {"colour": "red", "pose": null}.
- PART/metadata.csv beside its images, as Hugging Face's ImageFolder has it: a column file_name, and a column each
  attribute.

A label is a text or a whole number; null, or an empty cell, means that this image is not asked for this attribute.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from un2clip.errors import UserError, cause
from un2clip.evaluation.readers import Picture, read_tars
from un2clip.files.texts import parse_json, read_csv

Labelled = tuple[str, Picture, dict[str, str | None]]
FILE_NAME = "file_name"


def read_part(folder: Path, part: str) -> Iterator[Labelled]:
    """Id, picture, and labels, attribute -> value or None, of every image of a part, in its order.

    Raises:
        UserError: the part has neither layout, or both; while it is read, a tar, a row or a label is not as it
            must be.
    """
    where = folder / part
    tars, table = sorted(where.glob("[!.]*.tar")), where / "metadata.csv"
    if bool(tars) == table.is_file():
        raise UserError(
            f"{where} must hold either *.tar, with an image and .json a sample, or metadata.csv beside its images"
        )
    return _from_tars(tars) if tars else _from_table(table)


def _from_tars(tars: list[Path]) -> Iterator[Labelled]:
    for key, picture, text in read_tars(tars, "json"):
        name = f"{tars[0].parent}: sample {key}"
        labels = parse_json(text, f"{name}: its .json")
        if not isinstance(labels, dict):
            raise UserError(f"{name}: its .json must be a mapping from attribute to value, got {text[:60]!r}")
        yield key, picture, _labels(labels, name)


def _from_table(table: Path) -> Iterator[Labelled]:
    seen: set[str] = set()
    for line, row in read_csv(table, [FILE_NAME], more=True):
        name, where = row.pop(FILE_NAME), f"{table}, line {line}"
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or name in seen:
            raise UserError(
                f"{where}: {FILE_NAME} must name an image below its folder, each once; got {cause(repr(name))}"
            )
        seen.add(name)
        yield name, Picture(table.parent / path, f"{where}: {name}"), _labels(row, where)


def _labels(values: dict[str, Any], where: str) -> dict[str, str | None]:
    for attribute, value in values.items():
        if not isinstance(value, str | int | None) or "@" in attribute:  # @ parts an item's id
            got = f"{attribute}: {cause(repr(value))}"
            raise UserError(f"{where}: a label is a text or a whole number of an attribute without @; got {got}")
    return {attribute: None if value in (None, "") else str(value) for attribute, value in values.items()}
