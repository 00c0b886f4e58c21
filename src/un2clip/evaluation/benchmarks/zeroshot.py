"""Zero-shot classification, as clip-benchmark does it: of which class's texts is an image's embedding nearest?

How the number misleads: with few classes a model may know them by colour alone; read it beside the pairs. The
score is top-1 accuracy for every set, as clip-benchmark's acc1. CLIP's paper gives the mean over the classes for
Caltech-101, FGVC Aircraft, Flowers-102 and Oxford Pets, and mean average precision for VOC 2007: not these.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.classification import Classification, Sample, open_classification
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.models.clip import Clip

MODEL: Model = "clip"
PROTOCOL = "fp32; top-1; a class is the mean of its normalised templates, normalised"


def run(clip: Clip, folder: Path, *, batch_size: int, spread: Spread = alone) -> BenchmarkResult:
    """Top-1 outcome of every image, in fp32; an item's type is its true class.

    A class's embedding is the mean of its normalised templates, normalised.

    Args:
        folder: any layout of `open_classification`.
    """
    data = open_classification(folder, clip.preprocess)
    classifier = _classifier(clip, data)
    types = _types(data.names)
    items: list[Item] = []
    for found in spread("images", _batches(data, batch_size), _read, partial(_classified, clip, classifier)):
        items += [Item(id=key, type=types[label], value=float(label == predicted)) for key, label, predicted in found]
    if not items:
        raise UserError(f"{folder} holds no images")
    protocol = PROTOCOL + (f"; clip-benchmark's {data.shipped}" if data.shipped else "")
    return BenchmarkResult(unit="%", protocol=protocol, items=tuple(items))


def _classifier(clip: Clip, data: Classification) -> Tensor:
    """A column a class, (D, C), normalised; class by class, so that no class's rounding hangs on others."""
    templates = [partial(_filled, template) for template in data.templates]
    return clip.embed_classes(data.names, templates, at_once=1, progress=True)


def _read(batch: list[Sample]) -> dict[str, Any]:
    ids, pixel_values, labels = zip(*(sample() for sample in batch), strict=True)
    return {"ids": list(ids), "pixel_values": torch.stack(pixel_values), "labels": list(labels)}


def _classified(clip: Clip, classifier: Tensor, batch: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Id, label and predicted label of each image of a batch."""
    ids, labels = batch["ids"], batch["labels"]
    embedding = normalize(clip.embed(batch["pixel_values"], ids), dim=-1)
    logits = 100 * embedding @ classifier  # rounded as clip-benchmark's
    return list(zip(ids, labels, logits.argmax(1).tolist(), strict=True))


def _filled(template: str, name: str) -> str:
    return template.format(c=name)


def _batches(data: Classification, batch_size: int) -> Iterator[list[Sample]]:
    while batch := list(islice(data.samples, batch_size)):
        yield batch


def _types(names: list[str]) -> list[str]:
    """The names, made distinct: ImageNet has two classes of sunglasses and two of missiles."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]
