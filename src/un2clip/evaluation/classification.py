"""A data set for zero-shot classification: class names, templates and images, in any of three layouts.

- clip-benchmark's webdataset folder: test/*.tar (an image and .cls a sample), classnames.txt,
  zeroshot_classification_templates.txt;
- plain tars of the same form, *.tar;
- a data set as it is published, unpacked; `unpacked.py` has the readers.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any

from PIL import Image
from torch import Tensor

from un2clip.datasets.images import published_formats_only
from un2clip.errors import UserError, cause
from un2clip.evaluation.readers import Picture, dataset_type, find_tars, read_tars
from un2clip.evaluation.shipped import IMAGENET, shipped_names, shipped_templates
from un2clip.evaluation.unpacked import UNPACKED, open_unpacked
from un2clip.files.texts import read_lines

Preprocess = Callable[[Image.Image], Tensor]
#: Reads an image: its id, pixel_values (3, H, W) float32 and label.
Sample = Callable[[], tuple[str, Tensor, int]]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A data set for zero-shot classification.

    Attributes:
        names: one a class, by label.
        templates: texts with {c} for the class's name.
        shipped: what of the two is clip-benchmark's and not the folder's, for the protocol; "" for none.
        samples: one an image, to be gone through once.
    """

    names: list[str]
    templates: list[str]
    shipped: str
    samples: Iterator[Sample]


def open_classification(folder: Path, preprocess: Preprocess) -> Classification:
    """Find out which layout a folder has, and open it.

    Names and templates that the folder does not have are those that clip-benchmark has for the data set, whose
    name is what follows the first dash of the folder's: `zeroshot-cifar10`. Like clip-benchmark, sets without
    templates of their own get ImageNet's.

    Raises:
        UserError: it has none of the layouts, is multi-label, or lacks names or templates; while its samples
            are read, one is broken or has a class that no name belongs to.
    """
    if (kind := dataset_type(folder)) not in ("", "classification"):
        raise UserError(
            f"{folder}/dataset_type.txt says {kind}: only one label an image can be told right or wrong; "
            "retrieval is a benchmark of its own, and voc2007 has a form with a crop for each object"
        )
    dataset = folder.name.partition("-")[2]
    tars = find_tars(folder)
    if not tars:
        return _unpacked(folder, dataset, preprocess)
    names, named = _lines_or_shipped(folder / "classnames.txt", shipped_names, dataset)
    templates, templated = _lines_or_shipped(
        folder / "zeroshot_classification_templates.txt", shipped_templates, dataset, IMAGENET
    )
    _check_templates(templates, folder)
    shipped = [f"{what} of {of}" for what, of in (("names", named), ("templates", templated)) if of]
    return Classification(
        names=names,
        templates=templates,
        shipped=" and ".join(shipped),
        samples=_from_tars(tars, names, preprocess),
    )


def _from_tars(tars: list[Path], names: list[str], preprocess: Preprocess) -> Iterator[Sample]:
    for key, picture, text in read_tars(tars, "cls"):
        if not re.fullmatch("[0-9]{1,9}", label := text.strip()) or int(label) >= len(names):
            raise UserError(f"sample {key} has class {cause(repr(label))}, but there are {len(names)} names, from 0")
        yield partial(_preprocessed, key, picture, int(label), preprocess)


def _preprocessed(key: str, picture: Picture, label: int, preprocess: Preprocess) -> tuple[str, Tensor, int]:
    return key, preprocess(picture.read()), label


def _lines_or_shipped(
    path: Path, shipped: Callable[[], dict[str, list[str]]], dataset: str, otherwise: str = ""
) -> tuple[list[str], str]:
    """A file's lines and "", or the texts that are shipped, and for which data set they are."""
    if path.is_file():
        lines = [line.strip() for line in read_lines(path)]
        if not lines or "" in lines:  # passing over a line would shift every label behind it
            raise UserError(f"{path}: line {lines.index('') + 1 if lines else 1} is empty")
        return lines, ""
    known = shipped()
    for name in (dataset, otherwise if dataset else ""):
        if name in known:
            return known[name], name
    raise UserError(
        f"no {path}, and none is known for {dataset or path.parent.name!r}; write it, "
        f"or call the benchmark zeroshot-NAME after one of {', '.join(sorted(known))}"
    )


def _check_templates(templates: list[str], folder: Path) -> None:
    for template in templates:
        try:
            fields = [(name, spec, change) for _, name, spec, change in Formatter().parse(template) if name is not None]
        except ValueError:
            fields = []
        if not fields or set(fields) != {("c", "", None)}:
            raise UserError(f"{folder}: template {template!r} must hold {{c}} for the class, and no other braces")


def _unpacked(folder: Path, dataset: str, preprocess: Preprocess) -> Classification:
    if dataset not in UNPACKED:
        raise UserError(
            f"{folder} has neither test/*.tar nor *.tar; unpacked data are read for zeroshot-NAME "
            f"with NAME one of {', '.join(UNPACKED)}"
        )
    with published_formats_only():
        data = open_unpacked(folder, dataset, preprocess)
    return Classification(
        names=list(data.classes),
        templates=shipped_templates().get(dataset) or shipped_templates()[IMAGENET],
        shipped=f"names, templates and split of {dataset}",
        samples=_from_dataset(data, folder),
    )


def _from_dataset(data: Any, folder: Path) -> Iterator[Sample]:
    for i in range(len(data)):
        yield partial(_of_dataset, data, folder, i)


def _of_dataset(data: Any, folder: Path, i: int) -> tuple[str, Tensor, int]:
    try:
        with published_formats_only():
            pixel_values, label = data[i]
    except Exception as error:
        raise UserError(f"{folder}: image {i} cannot be read: {type(error).__name__}: {error}") from None
    if not 0 <= int(label) < len(data.classes):
        raise UserError(f"{folder}: image {i} has class {label}, but there are {len(data.classes)} names, from 0")
    return str(i), pixel_values, int(label)
