"""Banks of texts for the anchors that hold an encoder's likeness to language.

They come from the captions of the training images, never from a benchmark's prompts, and say nothing about which image
has which. `caption_bank` is captions as they are. `word_bank` is the common words alone: what many captions name is
what a CLIP knows already, and what few captions name it may still learn.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from un2clip.config import at_least
from un2clip.datasets.copies import held
from un2clip.datasets.loader import shuffled
from un2clip.datasets.random_access import locate, read_bytes
from un2clip.datasets.shards import read_index
from un2clip.errors import UserError

_WORD = re.compile(r"[^\W\d_]{3,}")  # letters alone, so no articles, numbers and signs


@dataclass(frozen=True, kw_only=True)
class Words:
    """What makes the bank of common words.

    Attributes:
        captions: how many are counted, at most.
        share: of them, in how many a word must stand.
        text: how a word is put, with {word} in its place.
        leave_out: words that are left free, though they are common: those that name details.
    """

    captions: int
    share: float
    text: str
    leave_out: tuple[str, ...]

    def __post_init__(self) -> None:
        at_least(self, 1, "captions")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and up to 1, got {self.share}")
        if "{word}" not in self.text:
            raise ValueError(f"text must hold {{word}}, got {self.text!r}")


def caption_bank(shards: Path, *, seed: int, size: int) -> list[str]:
    """So many different captions of the training images, or all if there are fewer, in an order that the seed decides.

    Raises:
        UserError: there are not two different ones, so there is nothing to tell apart.
    """
    bank: dict[str, None] = {}
    for caption in captions(shards, seed):
        bank[caption] = None
        if len(bank) == size:
            break
    if len(bank) < 2:
        raise UserError(
            f"a bank of captions needs two different ones, and {shards}/train has {len(bank)}; give `ingest` images "
            "with captions, or choose a method without them (un2clip-anchored)"
        )
    return list(bank)


def word_bank(shards: Path, words: Words, *, seed: int) -> list[str]:
    """The common words of the training captions, each as a text, the most common first and equals by alphabet.

    Raises:
        UserError: there is none.
    """
    found: Counter[str] = Counter()
    counted = 0
    for caption in islice(captions(shards, seed), words.captions):
        found.update(set(_WORD.findall(caption.lower())))
        counted += 1
    common = [word for word, n in found.items() if n >= words.share * counted and word not in words.leave_out]
    if not common:
        raise UserError(
            f"no word stands in {100 * words.share:g} % of the {counted} captions of {shards}/train; lower "
            "finetune.words.share, give `ingest` images with captions, or choose a method without them "
            "(un2clip-anchored)"
        )
    return [words.text.format(word=word) for word in sorted(common, key=lambda word: (-found[word], word))]


def captions(shards: Path, seed: int) -> Iterator[str]:
    """Captions of the training images that have one and can be read, in an order that the seed decides."""
    index = read_index(shards)
    listed = index.splits["train"]
    order = islice(shuffled([each.samples for each in listed], seed), index.count("train"))
    for shard, indices in groupby(order, key=lambda index: index.shard):
        with held(shards / "train" / listed[shard].name, listed[shard]) as tar:
            for _, number, _ in indices:
                try:
                    caption = read_bytes(tar, locate(tar, ("txt",))[number]).decode(errors="replace")
                except (IndexError, OSError):
                    continue  # the tar is damaged or cut off before it: fewer captions
                if caption:  # an image may have none
                    yield caption
