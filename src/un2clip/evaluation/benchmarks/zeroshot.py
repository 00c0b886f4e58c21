"""Zero-shot classification, by clip-benchmark: of which class's texts is an image's embedding nearest?

How the number misleads: with few classes a model may know them by colour alone; read it beside the pairs. The
score is top-1 accuracy for every set, as clip-benchmark's acc1. CLIP's paper gives the mean over the classes for
Caltech-101, FGVC Aircraft, Flowers-102 and Oxford Pets, and mean average precision for VOC 2007: not these.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import torch
from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
from torch import Tensor

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.classification import Classification, open_classification
from un2clip.evidence.items import Item
from un2clip.models.clip import Clip, finite

MODEL: Model = "clip"
PROTOCOL = "fp32; top-1; a class is the mean of its normalised templates, normalised"


def run(clip: Clip, folder: Path, *, batch_size: int) -> BenchmarkResult:
    """Top-1 outcome of every image, in fp32; an item's type is its true class.

    A class's embedding is the mean of its normalised templates, normalised. The logits of all images are held at
    once, 4 bytes for each image and class: 0.2 GB for ImageNet.

    Args:
        folder: any layout of `open_classification`.
    """
    data = open_classification(folder, clip.preprocess)
    device = clip.device.type
    classifier = zero_shot_classifier(clip.model, clip.tokenize, data.names, data.templates, device, amp=False)
    finite(classifier.T, "class", data.names)
    ids: list[str] = []
    batches = _batches(data, batch_size, ids)
    if (first := next(batches, None)) is None:
        raise UserError(f"{folder} holds no images")
    logits, labels = run_classification(clip.model, classifier, chain([first], batches), device, amp=False)
    types = _types(data.names)
    correct = (finite(logits, "image", ids).argmax(1) == labels).tolist()
    items = tuple(
        Item(id=key, type=types[label], value=float(right))
        for key, label, right in zip(ids, labels.tolist(), correct, strict=True)
    )
    protocol = PROTOCOL + (f"; clip-benchmark's {data.shipped}" if data.shipped else "")
    return BenchmarkResult(unit="%", protocol=protocol, items=items)


def _batches(data: Classification, batch_size: int, ids: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pixel_values (B, 3, H, W) and labels (B,); the ids of what has been read are added to `ids`."""
    while batch := list(islice(data.samples, batch_size)):
        keys, pixel_values, labels = zip(*batch, strict=True)
        ids.extend(keys)
        yield torch.stack(pixel_values), torch.tensor(labels)


def _types(names: list[str]) -> list[str]:
    """The names, made distinct: ImageNet has two classes of sunglasses and two of missiles."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]
