"""Check captions, and describe them in numbers."""

import hashlib
import re
from collections import Counter
from typing import Any

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
    """Counts captions; remembers word counts and 16 bytes a caption, not the captions."""

    def __init__(self) -> None:
        self._lengths: Counter[int] = Counter()
        self._words: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def add(self, caption: str) -> None:
        """Count one caption."""
        words = caption.lower().split()
        self._lengths[len(words)] += 1
        self._words.update(words)
        self._seen.add(hashlib.blake2b(caption.encode(), digest_size=16).digest())

    def summary(self) -> dict[str, Any]:
        """Number of captions, how many differ, mean and median length in words, the most common words."""
        lengths = sorted(self._lengths.items())
        n = self._lengths.total()
        return {
            "n": n,
            "unique": len(self._seen),
            "words_mean": sum(length * count for length, count in lengths) / n if n else None,
            "words_median": _median(lengths, n) if n else None,
            "common_words": dict(sorted(self._words.items(), key=lambda item: (-item[1], item[0]))[:_COMMON_WORDS]),
        }


def _median(counts: list[tuple[int, int]], n: int) -> float:
    """The median of n values given as (value, how often), in order of value."""

    def at(rank: int) -> int:
        for value, count in counts:
            rank -= count
            if rank < 0:
                return value
        raise AssertionError("rank is below n")

    return (at((n - 1) // 2) + at(n // 2)) / 2
