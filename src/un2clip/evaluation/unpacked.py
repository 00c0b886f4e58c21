"""Data sets for zero-shot classification as they are published, unpacked: torchvision's readers, and what it lacks.

Splits, class names and the order of the images are those of clip-benchmark 1.6.2, so that scores go with its table.
Nothing is ever downloaded.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from torchvision import datasets
from torchvision.datasets import DatasetFolder, ImageFolder

from un2clip.errors import UserError
from un2clip.evaluation.shipped import imagenet_subset, shipped_names
from un2clip.files.texts import read_json, read_text
from un2clip.hashes import is_hidden

Transform = Callable[[Image.Image], Any]
SIDES = ("xmin", "ymin", "xmax", "ymax")
#: A sequence of (transformed image, label) with `classes`.
Reader = Callable[..., Any]


def open_unpacked(folder: Path, dataset: str, transform: Transform) -> Any:
    """A data set of UNPACKED: a sequence of (transformed image, label) with `classes`, a name for each label.

    Raises:
        UserError: the folder is not that data set, or not all of its classes.
    """
    try:
        data = UNPACKED[dataset](folder, transform=transform)
    except Exception as error:  # each of two dozen readers has its own way to miss a file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} is not {dataset} as it is published ({reason})") from None
    if dataset in _WORDNET:
        wanted = imagenet_subset(dataset)
        _check_classes(data.classes, wanted, folder, dataset)
        data.classes = list(wanted.values())
    elif dataset in _RENAMED:
        data.classes = shipped_names()[dataset]
    elif dataset in ("food101", "sun397"):
        data.classes = [name.replace("_", " ").replace("/", " ") for name in data.classes]
    if isinstance(data, DatasetFolder):  # which takes `._a.jpg` for a picture
        _check_number(len(data.class_to_idx), len(data.classes), folder, dataset)
        data.samples = [each for each in data.samples if not is_hidden(Path(each[0]).relative_to(folder))]
    return data


def _check_classes(found: list[str], wanted: Mapping[str, str], folder: Path, dataset: str) -> None:
    """A reader numbers the folders that it finds: with two of ImageNet's 1000, goldfish would be called tench."""
    _check_number(len(found), len(wanted), folder, dataset)
    if strange := sorted(set(found) - wanted.keys()):
        raise UserError(f"{folder} has a folder {strange[0]}, which is no class of {dataset}")


def _check_number(found: int, wanted: int, folder: Path, dataset: str) -> None:
    if found != wanted:
        raise UserError(f"{folder} has {found} classes' folders, but {dataset} {wanted}")


def _folders(root: Path, *, transform: Transform, below: str = "") -> ImageFolder:
    return ImageFolder(str(root / below), transform=transform)


def _objectnet(root: Path, *, transform: Transform) -> ImageFolder:
    """The 113 of ObjectNet's 313 classes that ImageNet has, by the mappings that are unpacked beside it."""
    label_of = read_json(root / "folder_to_objectnet_label.json")
    folder_of = {label: folder for folder, label in label_of.items()}
    wanted = sorted(folder_of[label] for label in read_json(root / "objectnet_to_imagenet_1k.json"))
    data = _folders(root, transform=transform, below="objectnet-1.0/images")
    data.class_to_idx = {folder: label for label, folder in enumerate(wanted)}
    folders = ((path, Path(path).parent.name) for path, _ in data.samples)
    data.samples = [(path, data.class_to_idx[name]) for path, name in folders if name in data.class_to_idx]
    data.classes = [label_of[folder].lower() for folder in wanted]
    return data


class _VocCrops:
    """VOC 2007 with each object cut out, so that an image has one label."""

    def __init__(self, root: Path, *, transform: Transform) -> None:
        self.photographs = datasets.VOCDetection(str(root), year="2007", image_set="test")
        self.transform = transform
        self.classes = shipped_names()["voc2007"]
        self.crops: list[tuple[int, tuple[float, float, float, float], int]] = []
        for i, path in enumerate(self.photographs.annotations):
            for found in ElementTree.fromstring(read_text(Path(path))).findall("object"):
                xmin, ymin, xmax, ymax = (int(found.findtext(f"bndbox/{side}", "")) for side in SIDES)
                label = self.classes.index(found.findtext("name", ""))
                self.crops.append((i, (xmin, ymin, xmax, ymax), label))

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        i, box, label = self.crops[index]
        image, _ = self.photographs[i]
        return self.transform(image.crop(box)), label


#: Data set -> its reader, of (folder, transform); the test split where there is one.
UNPACKED: dict[str, Reader] = {
    "caltech101": partial(_folders, below="caltech101/101_ObjectCategories"),  # its background is a class here
    "cars": partial(datasets.StanfordCars, split="test"),
    "cifar10": partial(datasets.CIFAR10, train=False),
    "cifar100": partial(datasets.CIFAR100, train=False),
    "country211": partial(datasets.Country211, split="test"),
    "dtd": partial(datasets.DTD, split="test"),
    "eurosat": datasets.EuroSAT,
    "fer2013": partial(_folders, below="test"),
    "fgvc_aircraft": partial(datasets.FGVCAircraft, split="test", annotation_level="variant"),
    "flowers": partial(datasets.Flowers102, split="test"),
    "food101": partial(datasets.Food101, split="test"),
    "gtsrb": partial(datasets.GTSRB, split="test"),
    "imagenet-a": _folders,
    "imagenet-r": _folders,
    "imagenet1k": partial(_folders, below="val"),
    "imagenet_sketch": _folders,
    "mnist": partial(datasets.MNIST, train=False),
    "objectnet": _objectnet,
    "pcam": partial(datasets.PCAM, split="test"),
    "pets": partial(datasets.OxfordIIITPet, split="test", target_types="category"),
    "renderedsst2": partial(datasets.RenderedSST2, split="test"),
    "stl10": partial(datasets.STL10, split="test"),
    "sun397": datasets.SUN397,
    "voc2007": _VocCrops,
}
#: Sets whose folders are called by ImageNet's WordNet ids.
_WORDNET = ("imagenet-a", "imagenet-r", "imagenet1k", "imagenet_sketch")
#: Sets whose reader calls the classes otherwise than they are asked for.
_RENAMED = ("caltech101", "country211", "eurosat", "fer2013", "flowers", "gtsrb", "mnist", "pcam")
