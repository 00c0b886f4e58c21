"""The values of `kfp run submit`, against the compiled file: what passes, what is refused, and in which words."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiling import PACKAGE, arguments, read_params
from pipelines.values import FREE, check_secrets, read_value

ROOT = Path(__file__).parents[2]
DECLARED = next(yaml.safe_load_all(PACKAGE.read_text()))["root"]["inputDefinitions"]["parameters"]
COMPARE = DECLARED["compare_params"]["defaultValue"]
AS_TEXT, AS_TRUTH = (json.dumps(COMPARE | {"resamples": value}) for value in ("9", True))
KINDS = {
    kind: {"value": {"parameterType": kind}}
    for kind in ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST", "STRUCT")
}


@pytest.mark.parametrize(
    ("kind", "text", "read"),
    [
        ("STRING", "8", "8"),
        ("STRING", "", ""),
        ("STRING", "null", "null"),
        ("STRING", '"quoted"', "quoted"),
        ("STRING", '"half', '"half'),
        ("NUMBER_INTEGER", "-3", -3),
        ("NUMBER_INTEGER", "3.0", 3),
        ("NUMBER_INTEGER", "3.7", None),
        ("NUMBER_INTEGER", "", None),
        ("NUMBER_INTEGER", "true", None),
        ("NUMBER_INTEGER", "1e999", None),
        ("NUMBER_DOUBLE", "2", 2),
        ("NUMBER_DOUBLE", "0.5", 0.5),
        ("NUMBER_DOUBLE", "NaN", None),
        ("NUMBER_DOUBLE", "two", None),
        ("BOOLEAN", "true", True),
        ("BOOLEAN", "False", False),
        ("BOOLEAN", "1", None),
        ("BOOLEAN", "yes", None),
        ("LIST", '["a"]', ["a"]),
        ("LIST", "a", None),
        ("LIST", '{"a": 1}', None),
        ("STRUCT", '{"a": 1}', {"a": 1}),
        ("STRUCT", "{a: 1}", None),
        ("STRUCT", "[]", None),
        ("STRUCT", "", None),
        ("LIST", "[null]", None),
        ("STRUCT", '{"a": [{"b": null}]}', None),
    ],
)
def test_every_type(kind: str, text: str, read: Any) -> None:
    """A value of each of Kubeflow's types is handed on as JSON of that type, or refused by name."""
    if read is None:
        with pytest.raises(ValueError, match=r"^value.* must "):
            read_value(f"value={text}", KINDS[kind])
    else:
        key, _, value = read_value(f"value={text}", KINDS[kind]).partition("=")
        assert (key, json.loads(value), type(json.loads(value))) == ("value", read, type(read))


@pytest.mark.parametrize("name", DECLARED)
def test_every_parameter_refuses_another_type(name: str) -> None:
    """Each parameter of the pipeline takes its own default, and says so where it is given what it does not declare."""
    default = DECLARED[name]["defaultValue"]
    text = default if isinstance(default, str) else json.dumps(default)
    assert json.loads(read_value(f"{name}={text}", DECLARED).partition("=")[2]) == default
    if DECLARED[name]["parameterType"] != "STRING":
        with pytest.raises(ValueError, match=f"^{name} must be"):
            read_value(f"{name}=wrong", DECLARED)


@pytest.mark.parametrize("name", [name for name in DECLARED if name.endswith("_params")])
def test_every_key_of_a_section_is_wanted(name: str) -> None:
    """A section without one of its keys, with one too many, or with a null, is refused by the key."""
    section = DECLARED[name]["defaultValue"]
    for key in section:
        rest = {other: value for other, value in section.items() if other != key}
        with pytest.raises(ValueError, match=f"^{name} must be the whole section; it lacks {key}$"):
            read_value(f"{name}={json.dumps(rest)}", DECLARED)
        with pytest.raises(ValueError, match=f"^{name}.{key} must"):
            read_value(f"{name}={json.dumps(section | {key: None})}", DECLARED)
    with pytest.raises(ValueError, match=f"^{name} has the unknown key extra; known: "):
        read_value(f"{name}={json.dumps(section | {'extra': 1})}", DECLARED)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"compare_params={AS_TEXT}", 'compare_params.resamples must be a number; got "9"'),
        (f"compare_params={AS_TRUTH}", "compare_params.resamples must be a number"),
        ("benchmarks=[3]", "benchmarks[0] must be a text; got 3"),
        ("sead=3", "unknown parameter sead; the pipeline takes "),
    ],
)
def test_the_place_is_named(word: str, said: str) -> None:
    """What is wrong inside a value is named with its place."""
    with pytest.raises(ValueError) as raised:
        read_value(word, DECLARED)
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)


@pytest.mark.parametrize("overlay", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_overlays_pass(overlay: Path) -> None:
    """The sections of every overlay fit the compiled file: nothing of ours is refused."""
    for name, value in arguments(read_params(overlay)).items():
        read_value(f"{name}={value if isinstance(value, str) else json.dumps(value)}", DECLARED)


def test_free_names_are_those_of_the_schemas() -> None:
    """Where the names are the user's own, according to the schemas, none is wanted; and nowhere else."""

    def free(schema: Any) -> Iterator[str]:
        for name, each in schema.get("properties", {}).items():
            if isinstance(each.get("additionalProperties"), dict):
                yield name
            yield from free(each)

    schemas = [json.loads((ROOT / f"{name}.schema.json").read_text()) for name in ("params", "world")]
    assert {name for schema in schemas for name in free(schema)} == FREE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["s3_secret=all", "mlflow_secret=all"], "mlflow_secret and s3_secret must name two Secrets, got all twice"),
        (["s3_secret=un2clip-hub"], "hub_secret and s3_secret must name two Secrets, got un2clip-hub twice"),
        (["hub_secret=team.hub"], "hub_secret must be at most 63 of a-z, 0-9 and '-', as a volume's name; got 'team.h"),
        (["hub_secret="], "hub_secret must be at most"),
        (["hub_secret=-a"], "hub_secret must be at most"),
        (["hub_secret=" + "a" * 64], "hub_secret must be at most"),
        (["hub_secret=" + "a" * 63, "s3_secret=0", "seed=3"], ""),
    ],
)
def test_secrets_are_volumes(words: list[str], said: str) -> None:
    """A pod with two volumes of one name, or one of a name with a dot, would never start."""
    typed = [read_value(word, DECLARED) for word in words]
    if not said:
        check_secrets(typed, DECLARED)
        return
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        check_secrets(typed, DECLARED)
