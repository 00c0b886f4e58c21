"""The schemas of the numbers and docs/params.md: fresh, complete, and of one mind with `config.convert`."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.wiring.schema import ROOT, file_schema, schema, schema_path, written
from un2clip.cli.keys import HINTS, Key, is_section, read_keys
from un2clip.config import convert, read_files, read_params, read_yaml, split
from un2clip.config.overlays import LIKE
from un2clip.errors import UserError

FILES = read_files(ROOT / "params.yaml")
TEXTS = {file: (ROOT / file).read_text() for file in FILES}
KEYS = [(file, key) for file, text in TEXTS.items() for key in read_keys(text)]
OVERLAYS = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "tests/e2e/tiny.yaml"]


@dataclasses.dataclass(frozen=True)
class Rate:
    lr: float
    decay: Literal["constant", "cosine"]


@dataclasses.dataclass(frozen=True)
class Phase:
    steps: int
    rate: Rate


OTHERS = """
text: "a # b"            # said of it
hashes: {}
sizes:                   # px
                         # each
  - 1                    # of an item, not of the key
  - 2
# of nothing
bare: 1
"""
PHASES = """
phases:                  # one after the other
  first:                 # trains the projector
    steps: 10            # optimiser steps
    rate:
      lr: 1.0e-3         # AdamW
      decay: cosine      # constant |
                         # cosine
  second:
    like: first
    steps: 20
  third:
    like: second
    rate: {lr: 0.5}
"""


def refused(described: dict[str, Any], value: Any) -> list[str]:
    """What a validator says of a value; nothing if it takes it."""
    return [error.message for error in Draft202012Validator(described).iter_errors(value)]


@pytest.mark.parametrize("path", written(), ids=lambda path: path.name)
def test_what_is_made_is_fresh(path: Path) -> None:
    """Each file is what `make schema` writes now."""
    assert path.read_text() == written()[path], "run `make schema`"


@pytest.mark.parametrize("file", FILES)
def test_the_first_line_names_the_schema(file: str) -> None:
    """By a path from the file, as yaml-language-server takes it; and the schema is one."""
    assert TEXTS[file].splitlines()[0] == f"# yaml-language-server: $schema={schema_path(file).name}"
    Draft202012Validator.check_schema(yaml.safe_load(schema_path(file).read_text()))


@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=lambda path: path.name if path else "none")
def test_every_overlay_makes_files_that_fit(overlay: Path | None) -> None:
    """The files as they are, and with each overlay laid over them."""
    numbers = read_params(ROOT / "params.yaml", [overlay] if overlay else [])
    for file, content in split(numbers, FILES).items():
        assert refused(read_yaml(schema_path(file)), content) == []


def changes(content: dict[str, Any], names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's content without a key, with another one beside it, and with a value of another type."""
    for kind in ("missing", "unknown", "type"):
        changed = copy.deepcopy(content)
        place = changed
        for name in names[:-1]:
            place = place[name]
        if kind == "missing":
            del place[names[-1]]
        elif kind == "unknown":
            place[names[-1] + "_"] = place[names[-1]]
        else:
            place[names[-1]] = [{}] if isinstance(place[names[-1]], list) else {"x": []}
        yield kind, changed


@pytest.mark.parametrize(("file", "key"), KEYS, ids=lambda each: getattr(each, "name", ""))
def test_a_mistake_at_any_key_is_seen(file: str, key: Any) -> None:
    """A key that is missing, unknown or of another type is refused, sections and numbers alike."""
    described = read_yaml(schema_path(file))
    for kind, changed in changes(FILES[file], key.name.split(".")):
        assert refused(described, changed) or allowed(kind, key), f"{key.name}: {kind}"


def allowed(kind: str, key: Key) -> bool:
    """Whether it is no mistake: a mapping has any number of entries, and an entry may take a key from a like one."""
    place = key.place.split(".")
    entry: Any = FILES[next(file for file, other in KEYS if other is key)]
    for name in key.name.split(".")[: place.index("*") + 1] if "*" in place else ():
        entry = entry[name]
    if place[-1] == "*":
        return kind in ("missing", "unknown")
    return kind == "missing" and "*" in place and LIKE in entry


VALUES = [None, True, 0, 1.0, 1.5, "word", "", [], [1], ["word"], [None], {}, {"a": "b"}, {"a": 1}, {"a": {"b": 1}}]
MORE = [int | None, None | str, dict[str, float], tuple[Literal["word"], ...], dict[str, tuple[int, ...]]]
LEAVES = {str(hint): hint for hint in [*MORE, *(key.hint for _, key in KEYS if not is_section(key.hint))]}


@pytest.mark.parametrize("hint", LEAVES.values(), ids=LEAVES)
def test_the_schema_takes_what_convert_takes(hint: Any) -> None:
    """Of each type that a key has, and of more: the two agree about every kind of value."""
    for value in VALUES:
        try:
            convert(hint, value, "x")
            taken = True
        except UserError:
            taken = False
        assert (refused(schema(hint, {}, ""), value) == []) is taken, value


def test_every_key_has_a_comment() -> None:
    """A number without one could not be understood where it stands."""
    assert [key.name for _, key in KEYS if not is_section(key.hint) and not key.comment] == []


def test_comments_are_read_where_they_stand() -> None:
    """Behind a key, behind a value that has a # of its own, going on below; another entry's for the same key."""
    hints = {"text": str, "hashes": dict[str, str], "sizes": tuple[int, ...], "bare": int, "phases": dict[str, Phase]}
    found = {key.name: (key.text, key.comment) for key in read_keys(OTHERS + PHASES, hints)}
    assert found["text"] == ('"a # b"', "said of it")
    assert found["hashes"] == ("{}", "") and found["bare"] == ("1", "")
    assert found["sizes"] == ("1, 2", "px each")
    assert found["phases"] == ("", "one after the other")
    assert found["phases.first"] == ("", "trains the projector") and found["phases.second"] == ("", "")
    assert found["phases.first.rate.decay"] == ("cosine", "constant | cosine")
    assert found["phases.second.steps"] == ("20", "optimiser steps")
    assert found["phases.third.rate.lr"] == ("0.5", "AdamW")
    assert found["phases.third.like"] == ("second", "the entry from which this one takes all that it does not hold")


@pytest.mark.parametrize(
    ("name", "entry", "fits"),
    [
        ("third", {"like": "second", "rate": {"decay": "constant"}}, True),
        ("fourth", {"like": "first"}, True),
        ("fourth", {"steps": 1, "rate": {"lr": 1.0, "decay": "cosine"}}, True),
        ("fourth", {"steps": 1, "rate": {"lr": 1.0}}, False),
        ("fourth", {"steps": 1}, False),
        ("fourth", {"like": "first", "stepz": 1}, False),
        ("fourth", {"like": "first", "rate": {"lr": "fast"}}, False),
        ("fourth", {"like": "first", "rate": {"decay": "linear"}}, False),
        ("fourth", {"like": 3}, False),
        ("fourth", 3, False),
    ],
)
def test_an_entry_is_whole_or_like_another(name: str, entry: Any, fits: bool) -> None:
    """The schema and `convert` agree: with `like`, keys may be absent and none may be foreign."""
    content = yaml.safe_load(PHASES)
    described = file_schema("x.yaml", PHASES, content, {"phases": dict[str, Phase]})
    content["phases"][name] = entry
    assert (refused(described, content) == []) is fits
    if fits:
        assert convert(dict[str, Phase], content["phases"], "phases")[name]
    else:
        with pytest.raises(UserError, match=f"phases.{name}"):
            convert(dict[str, Phase], content["phases"], "phases")


def test_the_editor_is_told_what_a_key_means() -> None:
    """In an entry too, whichever it is; an entry's own comment is not said of the others."""
    described = file_schema("x.yaml", PHASES, yaml.safe_load(PHASES), {"phases": dict[str, Phase]})
    phases = described["properties"]["phases"]
    assert phases["description"] == "one after the other"
    for branch in ("then", "else"):
        entry = phases["additionalProperties"][branch]
        assert "description" not in entry
        assert entry["properties"]["steps"] == {"description": "optimiser steps", "type": "integer"}
        assert entry["properties"]["rate"]["properties"]["lr"]["description"] == "AdamW"


def test_a_key_that_no_file_holds_cannot_be_left_out() -> None:
    """Every key of the dataclasses is in the schema of one file."""

    def names(described: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, each in described.get("properties", {}).items():
            yield from names(each, f"{prefix}{key}.") if "properties" in each else [f"{prefix}{key}"]

    found = [name for file in FILES for name in names(read_yaml(schema_path(file)))]
    wanted = names({"properties": {key: schema(hint, {}, key) for key, hint in HINTS.items()}})
    assert sorted(found) == sorted(wanted)
