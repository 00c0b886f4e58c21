"""Every key of a file of numbers: its type from the dataclasses, its text and its comment from the YAML.

A key's comment stands behind it, or behind a value that ends on the same line, and goes on in the lines of comment
that follow. In a mapping of dataclasses a key is explained where the first entry has it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from un2clip.config import lookup
from un2clip.config.overlays import LIKE
from un2clip.devices import DEVICES
from un2clip.files.texts import yaml_nodes
from un2clip.methods.table import METHODS
from un2clip.sources.download import Download
from un2clip.stages import STAGES, get_stage
from un2clip.study.pair_measures import PairMeasures
from un2clip.study.run import Study


@dataclass(frozen=True, kw_only=True)
class Explain:
    """The section `explain` of params.yaml.

    Attributes:
        discordances: shares of samples that are taken to change, where no scores say how many do.
    """

    discordances: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.discordances or not all(0.0 < each <= 1.0 for each in self.discordances):
            raise ValueError("discordances must be shares above 0 and at most 1, one at least")


#: What stands at the top of the files -> its type.
HINTS: dict[str, Any] = {
    "seed": int,
    "method": Literal[tuple(METHODS)],
    "device": Literal[DEVICES],
    "checkpoints": str,
    "images": str,
    "benchmark_data": str,
    "benchmarks": tuple[str, ...],
    "instructions": str,
    "language_seeds": tuple[int, ...],
    "questions": tuple[str, ...],
    **{name: get_type_hints(get_stage(name))["params"] for name in STAGES},
    "pair": PairMeasures,
    "explain": Explain,
    "study": Study,
    "download": Download,
}
LIKE_COMMENT = "the entry from which this one takes all that it does not hold"


@dataclass(frozen=True)
class Key:
    """A key of a file of numbers.

    Attributes:
        name: in full.
        place: the same, with * for the name of an entry of a mapping of dataclasses.
        hint: its type.
        text: its value as the file has it, items of a list separated by commas; "" for a section.
        comment: "" where there is none.
    """

    name: str
    place: str
    hint: Any
    text: str
    comment: str


def read_keys(text: str, hints: Any = HINTS) -> list[Key]:
    """Every key of a YAML text that the dataclasses take, sections too, in its order.

    Args:
        text: a mapping.
        hints: the type of each key at its top.

    Raises:
        UserError: a key that the types do not have.
    """
    root = yaml_nodes(text, "the numbers")
    keys = list(_keys(root, text, hints)) if root else []
    explained = comments(keys)
    return [key if key.comment or is_entry(key) else replace(key, comment=explained.get(key.place, "")) for key in keys]


def comments(keys: Iterable[Key]) -> dict[str, str]:
    """The comment at each place, of the first entry that has one."""
    found: dict[str, str] = {}
    for key in keys:
        if key.comment:
            found.setdefault(key.place, key.comment)
    return found


def is_section(hint: Any) -> bool:
    """Whether a type has keys of its own: a dataclass, or a mapping of dataclasses."""
    return is_dataclass(hint) or has_entries(hint)


def has_entries(hint: Any) -> bool:
    """Whether a type is a mapping of dataclasses, dict[str, Dataclass]."""
    return get_origin(hint) is dict and is_dataclass(get_args(hint)[1])


def is_entry(key: Key) -> bool:
    """Whether a key is the name of an entry of a mapping of dataclasses."""
    return key.place.endswith("*")


def _keys(node: yaml.Node, text: str, hint: Any, name: str = "", place: str = "") -> Iterator[Key]:
    known = {} if has_entries(hint) else hint if isinstance(hint, Mapping) else get_type_hints(hint) | {LIKE: str}
    for key, value in node.value:
        own = get_args(hint)[1] if has_entries(hint) else lookup(known, key.value, f"parameter below {name!r}")
        here, there = f"{name}{key.value}", f"{place}{'*' if has_entries(hint) else key.value}"
        comment = _comment(key, value, text.splitlines())
        yield Key(here, there, own, "" if is_section(own) else _text(value, text), comment)
        if is_section(own):
            yield from _keys(value, text, own, f"{here}.", f"{there}.")


def _text(node: yaml.Node, text: str) -> str:
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return ", ".join(_text(item, text) for item in node.value)
    return text[node.start_mark.index : node.end_mark.index]


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if block else value.end_mark
    found = re.fullmatch(r":?\s+#\s*(.*)", lines[end.line][end.column :])
    if not found:
        return LIKE_COMMENT if key.value == LIKE else ""
    said = [found[1]]
    for line in lines[end.line + 1 :]:
        if not (more := re.fullmatch(r"\s*#\s*(.*)", line)):
            break
        said.append(more[1])
    return " ".join(said)
