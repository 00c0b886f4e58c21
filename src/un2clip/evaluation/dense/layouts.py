"""Readers: folders of photographs and masks, as the public sets are laid out, and as you may have your own.

A layout is a row of LAYOUTS. A folder named `segmentation-<layout>` has that layout; any other says it in a
`segmentation.yaml` of one line (`layout: images_and_masks`). A `classes.txt` in the folder (one class a line, further
names after commas, the background first where there is one) takes the place of the official names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from un2clip.config import build, read_yaml
from un2clip.errors import UserError, cause
from un2clip.evaluation.dense.names import Names, check_names, packaged_names, read_names
from un2clip.files.texts import read_lines
from un2clip.hashes import files_below

#: The label of a pixel that does not count, in every public set; and such a pixel's class.
VOID, IGNORED = 255, -1
#: As many labels as 16 bits have: no mask that is read here has more.
LABELS = 65536
UNLABELLED = ("unlabeled", "unlabelled", "void", "ignore")
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps what.

    Attributes:
        images, masks: paths, {id} being an image's name (with its folder, for Cityscapes).
        listed: file with one id a line; "" if every image counts.
        names: file of official names in the package; "" if the folder's classes.yaml has them (id: name).
        background: label 0 is what belongs to no class, and thresholds apply.
        zero_reduce: label 0 does not count and label n is class n - 1 (mmsegmentation's reduce_zero_label).
    """

    images: str
    masks: str
    listed: str = ""
    names: str = ""
    background: bool = False
    zero_reduce: bool = False


_VOC = Layout(
    images="VOC2012/JPEGImages/{id}.jpg",
    masks="VOC2012/SegmentationClass/{id}.png",
    listed="VOC2012/ImageSets/Segmentation/val.txt",
    names="voc",
)
_CONTEXT = Layout(
    images="VOC2010/JPEGImages/{id}.jpg",
    masks="VOC2010/SegmentationClassContext/{id}.png",
    listed="VOC2010/ImageSets/SegmentationContext/val.txt",
    names="context",
)
LAYOUTS: dict[str, Layout] = {
    "voc20": replace(_VOC, zero_reduce=True),
    "voc21": replace(_VOC, background=True),
    "context59": replace(_CONTEXT, zero_reduce=True),
    "context60": replace(_CONTEXT, background=True),
    "coco_object": Layout(
        images="images/val2017/{id}.jpg",
        masks="annotations/val2017/{id}_instanceTrainIds.png",
        names="coco_object",
        background=True,
    ),
    "coco_stuff": Layout(
        images="images/val2017/{id}.jpg",
        masks="annotations/val2017/{id}_labelTrainIds.png",
        names="coco_stuff",
    ),
    "cityscapes": Layout(
        images="leftImg8bit/val/{id}_leftImg8bit.png",
        masks="gtFine/val/{id}_gtFine_labelTrainIds.png",
        names="cityscapes",
    ),
    "ade20k": Layout(
        images="images/validation/{id}.jpg",
        masks="annotations/validation/{id}.png",
        names="ade20k",
        zero_reduce=True,
    ),
    "images_and_masks": Layout(images="images/{id}", masks="masks/{id}.png"),
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """A folder's segmentation.yaml: `layout`, a row of LAYOUTS."""

    layout: str


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One image, its mask, and what the data set calls it."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set, read and checked as far as file names go.

    Attributes:
        name: under which protocols have settings: a layout, or `own`.
        photographs: in order of id, or of the set's own list.
        names: the names of each class.
        background: whether class 0 is the background.
        classes: label in a mask -> class, or IGNORED.
    """

    name: str
    photographs: tuple[Photograph, ...]
    names: Names
    background: bool
    classes: dict[int, int]

    def first(self, n: int) -> "DataSet":
        """The same with its first n photographs only."""
        return replace(self, photographs=self.photographs[:n])


def read_data_set(folder: Path) -> DataSet:
    """Read a folder.

    Raises:
        UserError: the layout is unknown, or an image, a mask or the names are missing.
    """
    name, layout = _layout(folder)
    if layout.names:
        names, classes = _official(folder, layout)
        background = layout.background
    else:
        names, classes = _own(folder)
        background = names[0][0] == "background"
    photographs = tuple(_photograph(folder, layout, each) for each in _ids(folder, layout))
    if not photographs:
        where = layout.listed or layout.images.replace("{id}", "*")
        raise UserError(f"{folder / where} holds no images")
    ids = [photograph.id for photograph in photographs]
    if len(set(ids)) < len(ids):
        raise UserError(f"{folder}: two images are called {next(each for each in ids if ids.count(each) > 1)}")
    return DataSet(name=name, photographs=photographs, names=names, background=background, classes=classes)


def _layout(folder: Path) -> tuple[str, Layout]:
    description = folder / "segmentation.yaml"
    if description.is_file():
        said = build(Description, read_yaml(description), str(description)).layout
        name = "own"
    else:
        said = name = folder.name.partition("-")[2]
    if said not in LAYOUTS or (name != "own" and not LAYOUTS[said].names):
        raise UserError(
            f"{folder} does not say how it is laid out; write `layout: NAME` into {description}, "
            f"NAME being one of {', '.join(LAYOUTS)}"
        )
    return name, LAYOUTS[said]


def _official(folder: Path, layout: Layout) -> tuple[Names, dict[int, int]]:
    own = folder / "classes.txt"
    official = packaged_names(layout.names)
    names = read_names(own) if own.is_file() else ((("background",),) if layout.background else ()) + official
    first = int(layout.zero_reduce)
    classes = {label + first: label for label in range(len(names))} | {VOID: IGNORED}
    return names, classes | ({0: IGNORED} if layout.zero_reduce else {})


def _own(folder: Path) -> tuple[Names, dict[int, int]]:
    path = next((path for path in (folder / "classes.yaml", folder / "masks/classes.yaml") if path.is_file()), None)
    if path is None:
        raise UserError(f"no {folder}/classes.yaml; it says what the labels of the masks mean (id: name)")
    content: Mapping[Any, Any] = read_yaml(path)
    content = content["classes"] if isinstance(content.get("classes"), dict) else content
    labels: dict[int, tuple[str, ...]] = {}
    for label, text in content.items():
        called = tuple(name.strip() for name in str(text).split(",") if name.strip())
        if type(label) is not int or not 0 <= label < LABELS or not called:
            got = cause(f"{label!r}: {text!r}")
            raise UserError(f"{path}: a class is a label between 0 and {LABELS - 1} and its names; got {got}")
        labels[label] = called
    counting = sorted(
        (label for label in labels if labels[label][0].lower() not in UNLABELLED),
        key=lambda label: (labels[label][0] != "background", label),
    )
    names = check_names(tuple(labels[label] for label in counting), path)
    classes = dict.fromkeys([VOID, *labels], IGNORED) | {label: i for i, label in enumerate(counting)}
    return names, classes


def _ids(folder: Path, layout: Layout) -> list[str]:
    if layout.listed:
        path = folder / layout.listed
        if not path.is_file():
            raise UserError(f"no {path}, which lists the images")
        return " ".join(read_lines(path)).split()
    start, _, end = layout.images.partition("{id}")
    found = (path.relative_to(folder / start).as_posix() for path in files_below(folder / start))
    if not end:
        return sorted(name for name in found if name.lower().endswith(PHOTOGRAPHS))
    return sorted(name.removesuffix(end) for name in found if name.endswith(end))


def _photograph(folder: Path, layout: Layout, name: str) -> Photograph:
    stem = name if layout.names else name.rpartition(".")[0]
    image, mask = folder / layout.images.format(id=name), folder / layout.masks.format(id=stem)
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{folder / layout.listed}: {cause(repr(name))} is not the name of an image")
    for path, what in ((image, "image"), (mask, "mask")):
        if not os.path.isfile(path):
            raise UserError(f"no {what} {cause(path)}")
    return Photograph(id=stem, image=image, mask=mask)
