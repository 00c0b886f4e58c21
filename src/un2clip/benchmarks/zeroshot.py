"""Zero-shot classification from a folder in clip-benchmark's webdataset layout (test/*.tar, classnames, templates).

How the number misleads: with few classes a model may know them by colour alone; read it beside the pairs.
"""

from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
import webdataset as wds
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from un2clip.benchmarks import Options, Outcome
from un2clip.checkpoint import Clip
from un2clip.config import UserError
from un2clip.scores import Item

PROTOCOL = "fp32; top-1; a class is the mean of its normalised templates, normalised"


def run(clip: Clip, folder: Path, options: Options) -> Outcome:
    """Top-1 outcome of every image, in fp32; an item's type is its true class.

    The class embeddings are open_clip's own: the mean of the normalised templates, normalised.

    Args:
        folder: classnames.txt, zeroshot_classification_templates.txt ({c} is the class) and test/*.tar.
    """
    names = _lines(folder / "classnames.txt")
    templates = _lines(folder / "zeroshot_classification_templates.txt")
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(
            clip.model,
            clip.tokenize,
            names,
            [lambda name, t=template: t.replace("{c}", name) for template in templates],
            device=clip.device,
        )
    items: list[Item] = []
    for keys, pixel_values, labels in tqdm(
        _batches(clip, folder, options.batch_size), unit="batch", desc="zeroshot", mininterval=1
    ):
        features = normalize(clip.embed(pixel_values), dim=-1)
        for key, label, predicted in zip(keys, labels, (features @ classifier).argmax(1).tolist(), strict=True):
            if not 0 <= label < len(names):
                raise UserError(f"{folder}: sample {key} has class {label}, but classnames.txt names {len(names)}")
            items.append(Item(id=key, type=names[label], value=float(predicted == label)))
    if not items:
        raise UserError(f"{folder}/test holds no images")
    return Outcome(unit="%", protocol=PROTOCOL, items=tuple(items))


def _batches(clip: Clip, folder: Path, batch_size: int) -> Iterator[tuple[list[str], Tensor, list[int]]]:
    tars = sorted((folder / "test").glob("*.tar"))
    if not tars:
        raise UserError(f"{folder}/test has no *.tar; expected clip-benchmark's webdataset layout")
    data = (
        wds.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)
        .decode("pilrgb")
        .to_tuple("__key__", "png;jpg;jpeg;webp", "cls")
    )
    batch: list[tuple[str, Tensor, int]] = []
    for key, image, label in data:
        batch.append((key, clip.preprocess(image), int(label)))
        if len(batch) == batch_size:
            yield _stack(batch)
            batch = []
    if batch:
        yield _stack(batch)


def _stack(batch: list[tuple[str, Tensor, int]]) -> tuple[list[str], Tensor, list[int]]:
    keys, images, labels = zip(*batch, strict=True)
    return list(keys), torch.stack(images), list(labels)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"no {path}; expected clip-benchmark's webdataset layout")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]
