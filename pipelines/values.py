"""The values of a run's `key=value` words, checked against the compiled pipeline before anything is sent.

Kubeflow's server takes what it is given, and the task that reads a wrong one says so an hour later, or never. What is
compared is all that a compiled file holds: each parameter's type, and of a section (`*_params`) the default itself,
whose keys a stage wants every one of. It imports nothing of un2clip, which the python of bin/kfp may not have.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: Keys of params.yaml and world.yaml below which the names are the user's own, so that none is required or unknown.
FREE = frozenset({"anchors", "convnext_small", "inception", "phases", "sha256", "vgg16"})
VOLUME = r"(?!.{64})[a-z0-9]([-a-z0-9]*[a-z0-9])?"  # a DNS label, as Kubernetes asks of a volume's name
WORDS = {
    "STRING": "a text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": 'a list, such as ["a", "b"]',
    "STRUCT": 'a mapping, such as {"a": 1}',
}


def read_value(word: str, declared: Mapping[str, Mapping[str, Any]]) -> str:
    """The word `key=value`, its value as JSON of the declared type, for the stock command line to read.

    Args:
        word: as it was typed; a text needs no quotes.
        declared: the pipeline's parameters by name, each with parameterType and defaultValue.

    Raises:
        ValueError: the pipeline has no such parameter, or the value does not fit it; the message is one line.
    """
    key, _, text = word.partition("=")
    if key not in declared:
        raise ValueError(f"unknown parameter {key}; the pipeline takes {', '.join(sorted(declared))}")
    kind, default = declared[key]["parameterType"], declared[key].get("defaultValue")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if kind == "STRING" and not isinstance(value, str):
        value = text  # 8, true and null are texts, where a text is declared
    if not _is(kind, value):
        raise ValueError(f"{key} must be {WORDS[kind]}; got {text!r}")
    if problem := next(_problems(value, default, key, section=key.endswith("_params")), None):
        raise ValueError(problem)
    return f"{key}={json.dumps(int(value) if kind == 'NUMBER_INTEGER' else value)}"


def check_secrets(words: Iterable[str], declared: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse names of Secrets with which no pod would start: Kubeflow names a pod's volume by the Secret in it.

    Args:
        words: what `read_value` returned, of all of them.
        declared: as of `read_value`; the parameters whose names end in _secret name Secrets, which need not exist.

    Raises:
        ValueError: two name the same, or one is no name of a volume; the message is one line.
    """
    given = {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}
    names: dict[str, str] = {}
    for key in (key for key in declared if key.endswith("_secret")):
        name = given.get(key, declared[key].get("defaultValue"))
        if not re.fullmatch(VOLUME, name):
            raise ValueError(f"{key} must be at most 63 of a-z, 0-9 and '-', as a volume's name; got {name!r}")
        if name in names:
            raise ValueError(f"{names[name]} and {key} must name two Secrets, got {name} twice; either need not exist")
        names[name] = key


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of a parameter's type; for JSON true and false are no numbers."""
    if kind == "NUMBER_INTEGER":
        return _is("NUMBER_DOUBLE", value) and value == int(value)
    if kind == "NUMBER_DOUBLE":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}[kind])


def _kind(value: Any) -> str:
    """The type of a default within a section; kfp writes every number as a fraction, so all of them are numbers."""
    kinds = {bool: "BOOLEAN", int: "NUMBER_DOUBLE", float: "NUMBER_DOUBLE", str: "STRING", list: "LIST"}
    return kinds.get(type(value), "STRUCT")


def _problems(value: Any, default: Any, name: str, *, section: bool) -> Iterator[str]:
    """What keeps a value from taking its default's place; a list's entries are as the default's first."""
    if value is None:
        yield f"{name} must not be null: a Kubeflow parameter cannot carry it"
    elif isinstance(value, dict):
        known = default if section and isinstance(default, dict) else {}
        if missing := [key for key in known if key not in value]:
            yield f"{name} must be the whole section; it lacks {', '.join(missing)}"
        if known and (unknown := [key for key in value if key not in known]):
            yield f"{name} has the unknown key {unknown[0]}; known: {', '.join(known)}"
        for key, item in value.items():
            yield from _entry(item, known.get(key), f"{name}.{key}", section=section and key not in FREE)
    elif isinstance(value, list):
        first = default[0] if isinstance(default, list) and default else None
        for i, item in enumerate(value):
            yield from _entry(item, first, f"{name}[{i}]", section=False)


def _entry(value: Any, default: Any, name: str, *, section: bool) -> Iterator[str]:
    if default is not None and value is not None and not _is(_kind(default), value):
        yield f"{name} must be {WORDS[_kind(default)]}; got {json.dumps(value)}"
    else:
        yield from _problems(value, default, name, section=section)
