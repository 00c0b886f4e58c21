"""Class names and templates of public data sets: ImageNet's are open_clip's, all others lie in zeroshot_texts.yaml."""

from functools import cache
from importlib.resources import files
from typing import Any

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from timm.data import ImageNetInfo

from un2clip.config import read_yaml

IMAGENET = "imagenet1k"


@cache
def _texts() -> dict[str, dict[str, list[Any]]]:
    return read_yaml(files("un2clip.evaluation") / "zeroshot_texts.yaml")


def shipped_names() -> dict[str, list[str]]:
    """Data set -> a name for each class, by label."""
    return {IMAGENET: list(IMAGENET_CLASSNAMES), **_texts()["names"]}


def shipped_templates() -> dict[str, list[str]]:
    """Data set -> its templates, texts with {c} for the class's name."""
    return {IMAGENET: [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES], **_texts()["templates"]}


def imagenet_subset(name: str) -> dict[str, str]:
    """WordNet id -> class name of ImageNet, or of the 200 classes of `imagenet-a` or `imagenet-r`, by label.

    timm has the ids, in which order ImageNet's folders lie.
    """
    wnids = ImageNetInfo().label_names()
    labels = _texts()["imagenet_subsets"].get(name, range(len(wnids)))
    return {wnids[label]: IMAGENET_CLASSNAMES[label] for label in labels}
