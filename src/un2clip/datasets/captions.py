"""Check captions, and describe them in numbers."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from un2clip.datasets.tables import StoredCounts, Tables
from un2clip.datasets.tars import Rejected

_COMMON_WORDS = 20
#: Control characters, but for those that end lines and pages, and the tab.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


def check_caption(data: bytes) -> str:
    """The caption in a txt file, without white space around it; "" where there is nothing else.

    Raises:
        Rejected: "text is not UTF-8", or "control characters in text": bytes of something else, such as UTF-16
            without its mark.
    """
    try:
        caption = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Rejected("text is not UTF-8", str(error)) from None
    if found := _CONTROL.search(caption):
        where = f"U+{ord(found[0]):04X} at {found.start()} of {len(caption)} letters"
        raise Rejected("control characters in text", where)
    return caption


class CaptionStatistics:
    """Counts captions, and which words they have."""

    def __init__(self, tables: Tables | None = None) -> None:
        """Args: tables: in which words are kept; None for some of its own."""
        self._words = StoredCounts(tables or Tables(), "words")
        self._lengths: Counter[int] = Counter()

    def add(self, counts: "WordCounts") -> None:
        """Count the captions that these counts are of."""
        self._lengths.update({int(length): count for length, count in counts.lengths.items()})
        self._words.update(counts.words)

    def summary(self, unique: int) -> dict[str, Any]:
        """Number of captions, how many differ, mean and median length in words, the most common words.

        Args:
            unique: how many differ, which is counted elsewhere.
        """
        lengths = sorted(self._lengths.items())
        n = self._lengths.total()
        return {
            "n": n,
            "unique": unique,
            "words_mean": sum(length * count for length, count in lengths) / n if n else None,
            "words_median": _median(lengths, n) if n else None,
            "common_words": self._words.most_common(_COMMON_WORDS),
        }


@dataclass(frozen=True, kw_only=True)
class WordCounts:
    """What some captions add to the statistics.

    Attributes:
        lengths: number of words, as a text -> number of captions.
        words: word in lower case -> how often.
    """

    lengths: dict[str, int]
    words: dict[str, int]

    @staticmethod
    def of(captions: Iterable[str]) -> "WordCounts":
        """The counts of these captions."""
        lengths, words = Counter[str](), Counter[str]()
        for caption in captions:
            found = caption.lower().split()
            lengths[str(len(found))] += 1
            words.update(found)
        return WordCounts(lengths=dict(lengths), words=dict(words))


def _median(counts: list[tuple[int, int]], n: int) -> float:
    """The median of n values given as (value, how often), in order of value."""

    def at(rank: int) -> int:
        for value, count in counts:
            rank -= count
            if rank < 0:
                return value
        raise AssertionError("rank is below n")

    return (at((n - 1) // 2) + at(n // 2)) / 2
