"""What a CLIP says of a laptop scene, detail by detail: of each attribute the statement nearest to the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.models.clip import Clip
from un2clip.world.scenes import ATTRIBUTES, COLUMN, DETAILS, Ints, canonical, describe

Said = dict[str, str]


def scene_of(metadata: Mapping[str, Any]) -> Ints | None:
    """The scene (attributes,) whose values a sample's metadata names, or None if it is of another world."""
    if any(metadata.get(name) not in values for name, values in ATTRIBUTES.items()):
        return None
    return np.array([values.index(metadata[name]) for name, values in ATTRIBUTES.items()])


@torch.no_grad()
def say(clip: Clip, pixel_values: Tensor, scenes: Sequence[Ints]) -> list[Said]:
    """For each image: attribute -> the value that CLIP gives it, for the attributes that can be seen in it.

    The statements name object, colour and the attribute, as those of the laptop's pairs do.

    Args:
        pixel_values: (N, 3, P, P).
        scenes: what each image shows; it decides the object and colour of the statements.
    """
    images, found = normalize(clip.embed(pixel_values), dim=1), []
    for image, scene in zip(images, scenes, strict=True):
        said: Said = {}
        for column in DETAILS:
            others = np.repeat(scene[None], len(list(ATTRIBUTES.values())[column]), axis=0)
            others[:, column] = np.arange(len(others))
            others = others[(canonical(others) == others).all(axis=1)]
            words = {COLUMN["object"], COLUMN["colour"], column}
            statements = [describe(each, words) for each in others]
            if len(set(statements)) < 2:
                continue
            texts = normalize(clip.embed_texts(statements), dim=1)
            name = list(ATTRIBUTES)[column]
            said[name] = ATTRIBUTES[name][others[int((texts @ image).argmax()), column]]
        found.append(said)
    return found


def changes(before: Said, after: Said, scene: Ints) -> list[str]:
    """What is said otherwise than before, a line an attribute, with a tick where it is true now and a cross if not."""
    truth = {name: ATTRIBUTES[name][scene[COLUMN[name]]] for name in after}
    return [
        f"{name}: {value} {'✓' if value == truth[name] else '✗'}"
        for name, value in after.items()
        if value != before[name]
    ]
