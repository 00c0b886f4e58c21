"""Probe: what a linear classifier reads of each attribute of an image from the encoder's features (arXiv 1610.01644).

How the number misleads: that something can be read does not mean that text finds it, which the pairs measure. Random
weights leave much to be read, patch tokens nearly everything, so only the difference of two encoders says something. A
classifier of more numbers reads more, so the pooled embedding and the tokens are no rivals.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.errors import UserError
from un2clip.evaluation.attributes import Labelled, read_part
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.readers import read_pixels
from un2clip.evaluation.ridge import Ridge
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.methods.features import Encoder
from un2clip.models.clip import Clip, finite

MODEL: Model = "clip"
PROTOCOL = "features in fp32, standardised; ridge to one-hot labels in float64, penalty by leave-one-out error from"
WITHOUT_TOKENS = "with evaluate.probe.grid 0 the pooled embedding alone is read"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `evaluate.probe` of params.yaml.

    Attributes:
        layer: of the patch tokens, from -1, the last.
        grid: tokens a side, at most; a finer map is averaged. 0: only the pooled embedding is read.
        penalties: of the ridge; one is chosen for each attribute.
    """

    layer: int
    grid: int
    penalties: tuple[float, ...]

    def __post_init__(self) -> None:
        at_least(self, 0, "grid")
        if self.layer >= 0:
            raise ValueError(f"layer counts from the end, -1 is the last block; got {self.layer}")
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive, at least one; got {list(self.penalties)}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """n images: ids, labels (attribute -> value or None), and features by name, (n, d) float32 each."""

    ids: list[str]
    labels: list[dict[str, str | None]]
    features: dict[str, Tensor]

    def rows(self, attribute: str) -> list[int]:
        """Those that have a label of the attribute."""
        return [i for i, labels in enumerate(self.labels) if labels.get(attribute) is not None]

    def values(self, attribute: str) -> list[str]:
        """These labels."""
        return [value for labels in self.labels if (value := labels.get(attribute)) is not None]


def run(clip: Clip, folder: Path, *, batch_size: int, options: Options, spread: Spread = alone) -> BenchmarkResult:
    """Whether each label of the test images was read, from the pooled embedding, and `also` from the patch tokens.

    Classifiers are fitted on the training images, for this encoder. Types are the attributes, an item's id is
    image@attribute. Where each attribute has as many labels, the score is the mean over the attributes.

    Args:
        folder: two parts, train and test (evaluation/attributes.py).

    Raises:
        UserError: the data are not as they must be, or the tower gives no patch tokens.
    """
    train, test = (_embed(clip, folder, part, batch_size, options, spread) for part in ("train", "test"))
    values = _values(train, test, folder)
    said = f"{PROTOCOL} {', '.join(f'{each:g}' for each in options.penalties)}; {_chance(train, test, values)}"
    of = {
        "pooled": "pooled embedding",
        "tokens": f"patch tokens of layer {options.layer}, at most {options.grid} a side",
    }
    (_, own), *further = [
        (
            name,
            BenchmarkResult(unit="%", protocol=f"{of[name]}; {said}", items=_items(name, train, test, values, options)),
        )
        for name in train.features
    ]
    return dataclasses.replace(own, also=dict(further))


def _embed(clip: Clip, folder: Path, part: str, batch_size: int, options: Options, spread: Spread) -> Part:
    try:
        encoder = Encoder(clip.model.visual, "raw" if options.grid else "none", options.layer)
    except UserError as error:
        raise UserError(f"{error}; {WITHOUT_TOKENS}") from None
    ids: list[str] = []
    labels: list[dict[str, str | None]] = []
    features: dict[str, list[Tensor]] = {}
    batches = _batches(read_part(folder, part), batch_size)
    read, measured = partial(_read, clip.preprocess), partial(_embedded, clip, encoder, options)
    for some_ids, some_labels, some in spread(f"probe {part}", batches, read, measured):
        ids += some_ids
        labels += some_labels
        for name, each in some.items():
            features.setdefault(name, []).append(each)
    if not ids:
        raise UserError(f"{folder / part} holds no images")
    return Part(ids=ids, labels=labels, features={name: torch.cat(each) for name, each in features.items()})


def _batches(samples: Iterator[Labelled], batch_size: int) -> Iterator[list[Labelled]]:
    while batch := list(islice(samples, batch_size)):
        yield batch


def _read(preprocess: Callable[[Image.Image], Tensor], batch: list[Labelled]) -> dict[str, Any]:
    ids, pictures, labels = zip(*batch, strict=True)
    return {"ids": list(ids), "labels": list(labels), "pixel_values": read_pixels(preprocess, pictures)}


def _embedded(
    clip: Clip, encoder: Encoder, options: Options, batch: dict[str, Any]
) -> tuple[list[str], list[dict[str, str | None]], dict[str, Tensor]]:
    """Ids, labels and features of a batch."""
    ids, pixel_values = batch["ids"], batch["pixel_values"].to(clip.device, non_blocking=True)
    with clip.arithmetic():
        found = _features(encoder, pixel_values, options)
    return ids, batch["labels"], {name: finite(each, "image", ids).cpu() for name, each in found.items()}


@torch.no_grad()
def _features(encoder: Encoder, pixel_values: Tensor, options: Options) -> dict[str, Tensor]:
    """(B, d) of each feature by its name, the pooled embedding first."""
    given = encoder(pixel_values)
    found = {"pooled": given.pooled}
    if given.tokens is not None:
        side = isqrt(given.tokens.shape[1])
        if side * side != given.tokens.shape[1]:
            raise UserError(f"{given.tokens.shape[1]} patch tokens are no square; {WITHOUT_TOKENS}")
        tokens = given.tokens.mT.unflatten(2, (side, side))
        found["tokens"] = adaptive_avg_pool2d(tokens, min(side, options.grid)).flatten(1)
    return found


def _values(train: Part, test: Part, folder: Path) -> dict[str, list[str]]:
    """The values of each attribute that the training images have, sorted; attributes in order of first appearance."""
    found: dict[str, list[str]] = {}
    for attribute in dict.fromkeys(name for labels in (*train.labels, *test.labels) for name in labels):
        known, asked = set(train.values(attribute)), set(test.values(attribute))
        if not known or not asked:
            raise UserError(f"{folder}: no image of {'test' if known else 'train'} has a label of {attribute}")
        if len(known) < 2:
            raise UserError(f"{folder}: in train {attribute} is always {min(known)}; there is nothing to tell apart")
        if unknown := asked - known:
            raise UserError(f"{folder}: in test {attribute} is {min(unknown)!r}, which no training image shows")
        found[attribute] = sorted(known)
    if not found:
        raise UserError(f"{folder}: its images have no attributes; nothing is to be read")
    return found


def _chance(train: Part, test: Part, attributes: Mapping[str, list[str]]) -> str:
    """What is right if the most common training value is always guessed, in %: on average, and for each attribute."""
    guessed = {}
    for attribute in attributes:
        (most, _), *_ = Counter(train.values(attribute)).most_common(1)
        asked = test.values(attribute)
        guessed[attribute] = 100 * asked.count(most) / len(asked)
    each = ", ".join(f"{attribute} {share:.1f}" for attribute, share in guessed.items())
    return f"the most common value would give {sum(guessed.values()) / len(guessed):.1f} %: {each}"


def _items(
    feature: str, train: Part, test: Part, values: Mapping[str, list[str]], options: Options
) -> tuple[Item, ...]:
    shared: dict[tuple[int, ...], list[str]] = {}  # attributes that the same images are labelled with share the work
    for attribute in values:
        shared.setdefault(tuple(train.rows(attribute)), []).append(attribute)
    found: dict[str, list[Item]] = {}
    for rows, attributes in tqdm(shared.items(), unit="fit", desc=f"probe {feature}", mininterval=1):
        ridge = Ridge(train.features[feature][list(rows)], options.penalties)
        for attribute in attributes:
            known, asked = values[attribute], test.rows(attribute)
            classes = torch.tensor([known.index(value) for value in train.values(attribute)])
            read = ridge.classify(classes, test.features[feature][asked]).tolist()
            found[attribute] = [
                Item(id=f"{test.ids[i]}@{attribute}", type=attribute, value=float(known[each] == label))
                for i, each, label in zip(asked, read, test.values(attribute), strict=True)
            ]
    return tuple(item for attribute in values for item in found[attribute])
