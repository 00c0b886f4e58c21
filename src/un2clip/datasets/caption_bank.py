"""A bank of captions: the texts on which an encoder's likeness to language is held.

They are captions of the training images, never a benchmark's prompts, and say nothing about which image has which.
"""

import functools
import tarfile
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.config import UserError
from un2clip.datasets.loader import shuffled
from un2clip.datasets.shards import read_index
from un2clip.models.clip import Clip

_AT_ONCE = 256  # texts in one forward


def caption_bank(shards: Path, *, seed: int, size: int) -> list[str]:
    """So many different captions of the training images, or all if there are fewer, in an order that the seed decides.

    Raises:
        UserError: there are not two different ones, so there is nothing to tell apart.
    """
    index = read_index(shards)
    listed = index.splits["train"]
    bank: dict[str, None] = {}
    for shard, number in islice(shuffled([each.samples for each in listed], seed), index.count("train")):
        bank |= dict.fromkeys(_captions(shards / "train" / listed[shard].name)[number : number + 1])
        if len(bank) == size:
            break
    if len(bank) < 2:
        raise UserError(
            f"a bank of captions needs two different ones, and {shards}/train has {len(bank)}; give `ingest` images "
            "with captions, or choose a method without them (un2clip-anchored)"
        )
    return list(bank)


@torch.no_grad()
def embed_bank(clip: Clip, captions: list[str]) -> Tensor:
    """(K, D): embeddings of length 1 times CLIP's own scale, so that a product with an image's gives CLIP's logits."""
    parts = (captions[i : i + _AT_ONCE] for i in range(0, len(captions), _AT_ONCE))
    return normalize(torch.cat([clip.embed_texts(part) for part in parts]), dim=1) * clip.model.logit_scale.exp()


@functools.lru_cache(maxsize=1)
def _captions(tar: Path) -> tuple[str, ...]:
    """The captions of a shard that `ingest` wrote, in its order; those before the damage, if it is damaged."""
    found: list[str] = []
    try:
        with tarfile.open(tar, mode="r:") as members:
            for member in members:
                if member.name.endswith(".txt") and (file := members.extractfile(member)):
                    found.append(file.read().decode(errors="replace"))
    except (tarfile.TarError, OSError):
        pass  # fewer captions
    return tuple(found)
