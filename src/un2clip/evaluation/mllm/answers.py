"""What an answer in words says: which letter of several options, or which of two words.

An answer that names none of the options, or that can be read in two ways, is "" and counts as wrong; nobody is asked
what it may have meant, and nothing is drawn. Sets whose published tables have rules of their own (POPE, MME,
ScienceQA, GQA, NaturalBench, HallusionBench) keep them, in their files of benchmarks/.
"""

import re
from collections.abc import Iterable, Mapping

_INTRODUCED = re.compile(r"(?:^|.*\b)(?:answer|option|choice)(?: is)?\s*[:\s]\s*", re.IGNORECASE | re.DOTALL)
_LETTER_FIRST = re.compile(r"\(?([A-Za-z])(?:\)[.:,]*|[.:,]+)?(?=\s|$)")
_MARKED = re.compile(r"\(([A-Za-z])\)|\b([A-Z])(?=[.:,)]|$)")


def letter(answer: str, options: Mapping[str, str]) -> str:
    """The option that an answer names by its letter or its text; "" where it names none, or not one alone.

    A letter counts where it stands alone ("b"), with a mark ("B.", "(B)", "B: a dog"), or before its own text
    ("B a dog"); behind "answer", "option" or "choice" ("The answer is (B)") as well, and in brackets anywhere.
    "a photo" is no A; "B or C" and "(B) or (C)" are nothing.

    Args:
        answer: as the model said it.
        options: A, B, ... -> its text, which may be "".
    """
    said = answer.strip().strip("*\"'").strip()
    texts = said, _INTRODUCED.sub("", said, count=1)
    if found := _by_text(texts[0], options) or _by_text(texts[1], options):
        return found
    marks = list(_MARKED.finditer(said))
    marked = {(mark[1] or mark[2]).upper() for mark in marks} & options.keys()
    if len(marked) > 1:
        return ""
    bracketed = {mark[1].upper() for mark in marks if mark[1]} & options.keys()
    return _by_letter(texts[0], options) or _by_letter(texts[1], options) or "".join(bracketed)


def first_word(answer: str, words: Iterable[str]) -> str:
    """The word that occurs first in an answer, as a whole word in any case; "" where none does."""
    found = {word: match.start() for word in words if (match := re.search(rf"\b{word}\b", answer, re.IGNORECASE))}
    return min(found, key=lambda word: found[word], default="")


def _by_text(said: str, options: Mapping[str, str]) -> str:
    found = [key for key, text in options.items() if text and _plain(text) == _plain(said)]
    return found[0] if len(found) == 1 else ""


def _by_letter(said: str, options: Mapping[str, str]) -> str:
    match = _LETTER_FIRST.match(said)
    if not match or (key := match[1].upper()) not in options:
        return ""
    rest, marked = said[match.end() :].strip(), len(match[0]) > 1
    return key if marked or not rest or (options[key] and _plain(rest) == _plain(options[key])) else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
