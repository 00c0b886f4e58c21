"""Retrieval (Flickr30k, COCO): a caption finds its image, an image finds one of its captions, among all of the set.

How the number misleads: the score is the mean over all queries and k, and most queries are captions; the numbers
that papers print are the types', R@1, R@5 and R@10 in each direction. R@1 punishes an encoder for captions that
fit two images alike, which in COCO are many.

Beside a reference there is a second score, NAME-index, for those who search: does a vector index that the reference
filled survive the new encoder? Its images are the reference's, the queries are the encoder's own: a caption finds its
image, and an image finds itself. The reference is scored likewise, on its own index, so a loss is what an index loses
that is not filled anew. Where the text tower stays, captions lose nothing, and images are what counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.readers import Picture, dataset_type, find_tars, read_pixels, read_tars
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.hashes import tensors_sha256
from un2clip.models.clip import Clip

MODEL: Model = "clip"
INDEX = "fp32; queries by the encoder, images by {sha256}; R@k: the query's image is among the first k, ties against it"
PROTOCOL = "fp32; R@k: a positive is among the first k of the whole set, ties against it; the score is the mean of all"
RECALLS = (1, 5, 10)
Sample = tuple[str, Picture, list[str]]  # its key, picture and captions


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A set of N images and M captions, embedded.

    Attributes:
        image_ids, caption_ids: N and M; of the queries, image@part.
        images: (N, D) float32, L2-normalised.
        captions: (M, D) float32, L2-normalised.
        owner: (M,) int64, the image of each caption.
    """

    image_ids: list[str]
    caption_ids: list[str]
    images: Tensor
    captions: Tensor
    owner: Tensor


def run(
    clip: Clip, folder: Path, *, batch_size: int, reference: Clip | None = None, spread: Spread = alone
) -> BenchmarkResult:
    """Every query's outcomes, in both directions: value 1 if the rank of its best positive is at most k.

    Types are "image to text R@1", ...; a k that no query could miss, because there are not more candidates, is
    left out. All outcomes of an image and its captions are parts of one sample, the image.

    Args:
        folder: clip-benchmark's webdataset layout, dataset_type.txt ("retrieval") and test/*.tar, or plain *.tar:
            an image and .txt a sample, a caption a line.
        reference: the encoder that filled an index; None for no second score.
    """
    data = _embed(clip, folder, batch_size, spread)
    image = torch.arange(len(data.images))
    to_text = ranks(data.images, data.captions, image, data.owner, batch_size)
    to_image = ranks(data.captions, data.images, data.owner, image, batch_size)
    items = [
        *_items("image to text", data.image_ids, to_text, len(data.captions)),
        *_items("text to image", data.caption_ids, to_image, len(data.images)),
    ]
    also = {} if reference is None else {"index": _index(data, clip, reference, folder, batch_size, spread)}
    return BenchmarkResult(unit="%", protocol=PROTOCOL, items=tuple(items), also=also)


def _index(
    data: Embedded, clip: Clip, reference: Clip, folder: Path, batch_size: int, spread: Spread
) -> BenchmarkResult:
    """The queries of `data` among the images as the reference embeds them."""
    image = torch.arange(len(data.images))
    images = data.images if reference is clip else _embed(reference, folder, batch_size, spread, texts=False).images
    if images.shape != data.images.shape:
        raise UserError(f"embeddings of {data.images.shape[1]} fit no index of {images.shape[1]} numbers an image")
    by_text = ranks(data.captions, images, data.owner, image, batch_size)
    by_image = ranks(data.images, images, image, image, batch_size)
    items = [
        *_items("text to old image", data.caption_ids, by_text, len(images)),
        *_items("image to old image", data.image_ids, by_image, len(images)),
    ]
    protocol = INDEX.format(sha256=tensors_sha256(reference.model.state_dict())[:12])
    return BenchmarkResult(unit="%", protocol=protocol, items=tuple(items))


def ranks(queries: Tensor, candidates: Tensor, of: Tensor, owner: Tensor, batch_size: int) -> list[int]:
    """Rank of the best positive of each query, from 1. A tie counts against it, and so does what is not a number.

    Args:
        queries: (Q, D) float32; their similarities are computed batch_size queries at a time.
        candidates: (N, D) float32.
        of, owner: (Q,) and (N,) int64; a candidate is positive where they are equal. Every query has one.
    """
    found: list[Tensor] = []
    owner = owner.to(candidates.device)
    for part, image in zip(queries.split(batch_size), of.to(candidates.device).split(batch_size), strict=True):
        similarity = part @ candidates.T
        positive = image[:, None] == owner[None, :]
        best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
        found.append(1 + (~(similarity < best) & ~positive).sum(dim=1))
    return torch.cat(found).tolist()


def _embed(clip: Clip, folder: Path, batch_size: int, spread: Spread, *, texts: bool = True) -> Embedded:
    image_ids: list[str] = []
    caption_ids: list[str] = []
    images, captions, owner = [], [], []
    batches = _batches(folder, batch_size)
    read, measured = partial(_read, clip.preprocess), partial(_embedded, clip, texts)
    for keys, counts, embedded, embedded_texts in spread("retrieval", batches, read, measured):
        images.append(embedded.to(clip.device))
        captions.append(embedded_texts.to(clip.device))
        for key, lines in zip(keys, counts, strict=True):
            owner += [len(image_ids)] * lines
            image_ids.append(f"{key}@image")
            caption_ids += [f"{key}@caption{n}" for n in range(lines)]
    if len(image_ids) < 2:
        raise UserError(f"{folder} holds {len(image_ids)} images; retrieval needs at least 2 to choose from")
    return Embedded(
        image_ids=image_ids,
        caption_ids=caption_ids,
        images=torch.cat(images),
        captions=torch.cat(captions),
        owner=torch.tensor(owner),
    )


def _read(preprocess: Callable[[Image.Image], Tensor], batch: list[Sample]) -> dict[str, Any]:
    keys, pictures, lines = zip(*batch, strict=True)
    return {"keys": list(keys), "lines": list(lines), "pixel_values": read_pixels(preprocess, pictures)}


def _embedded(clip: Clip, texts: bool, batch: dict[str, Any]) -> tuple[list[str], list[int], Tensor, Tensor]:
    """Keys and numbers of captions of a batch, its images embedded, and its captions where they are wanted."""
    keys, captions = batch["keys"], [text for lines in batch["lines"] for text in lines]
    images = normalize(clip.embed(batch["pixel_values"], keys), dim=-1).cpu()
    embedded = normalize(clip.embed_texts(captions), dim=-1).cpu() if texts else torch.empty(0)
    return keys, [len(lines) for lines in batch["lines"]], images, embedded


def _batches(folder: Path, batch_size: int) -> Iterator[list[Sample]]:
    samples = _samples(folder)
    while batch := list(islice(samples, batch_size)):
        yield batch


def _samples(folder: Path) -> Iterator[Sample]:
    tars = find_tars(folder)
    if not tars or dataset_type(folder) not in ("", "retrieval"):
        raise UserError(f"{folder} must hold test/*.tar or *.tar, and its dataset_type.txt, if any, say retrieval")
    for key, picture, text in read_tars(tars, "txt"):
        captions = [line for line in text.splitlines() if line.strip()]
        if not captions:
            raise UserError(f"{folder}: sample {key} has no caption")
        yield key, picture, captions


def _items(direction: str, ids: list[str], ranks: list[int], candidates: int) -> Iterator[Item]:
    for k in RECALLS:
        if k < candidates:
            for name, rank in zip(ids, ranks, strict=True):
                yield Item(id=f"{name} R{k}", type=f"{direction} R@{k}", value=float(rank <= k))
