"""Numbers: read params.yaml into frozen dataclasses, strictly.

`files` knows which key stands in which file, `overlays` lays overlays over them; here they become dataclasses.
No dataclass here has a default, because a default would be a second place where a number lives. A key
that is unknown, missing or of the wrong type stops the program with one line that names it in full
(`finetune.lr`) and says what is allowed.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from un2clip.config.files import FILES, flags, read_files, read_params, read_yaml, split, unite
from un2clip.config.overlays import RENAMED, complete, flatten, merge, stack, unknown
from un2clip.errors import UserError, cause
from un2clip.files.texts import decode, parse_json, read_text

__all__ = [
    "FILES", "RENAMED", "at_least", "build", "convert", "describe", "flags", "flatten", "lookup", "merge", "read_files",
    "read_params", "read_record", "read_yaml", "record", "split", "stack", "unite",
]  # fmt: skip
T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of a table called `name`, or a UserError that lists the table."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return table[name]


def at_least(section: object, lowest: int, *names: str) -> None:
    """Refuse a number below `lowest` in a dataclass of numbers; for its `__post_init__`.

    Raises:
        ValueError: names the field; `build` puts the section's name before it.
    """
    for name in names:
        if getattr(section, name) < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {getattr(section, name)}")


def read_record(cls: type[T], path: Path, made_by: str, *, nan: bool = False, data: bytes | None = None) -> T:
    """Read a JSON file that a stage wrote, as the dataclass that describes it.

    Args:
        cls: a key that it does not have is passed over, and a field with a default may be absent: other versions wrote
            other files.
        made_by: the stage.
        nan: as of `read_json`.
        data: its content, where that was read already.

    Raises:
        UserError: it is absent or broken, or something in it is missing or mistyped; the message names the stage.
    """
    try:
        text = read_text(path) if data is None else decode(data, str(path))
        return record(cls, parse_json(text, str(path), nan=nan), path.stem)
    except UserError as error:
        said = str(error) if str(path) in str(error) else f"cannot read {path}: {error}"
        raise UserError(f"{said}; run `un2clip {made_by}` to make it") from None


def record(cls: type[T], content: Any, name: str) -> T:
    """As `build`, of what a stage wrote: a key that `cls` does not have is passed over."""
    if isinstance(content, Mapping):
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        content = {key: content[key] for key in known if key in content}
    return build(cls, content, name)


def build(cls: type[T], values: Any, name: str) -> T:
    """Build the dataclass `cls` from a mapping; `name` is the section's name, for messages.

    Raises:
        UserError: a key is unknown, missing or mistyped, or the class's own `__post_init__` refuses it.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name} must be a mapping, got {cause(repr(values))}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(unknown(f"{name}.{key}", fields, values[key]))
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"missing parameter {name}.{key}: {describe(hints[key])}")
    converted = {key: convert(hints[key], values[key], f"{name}.{key}") for key in fields if key in values}
    try:
        return cls(**converted)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name}.{error}") from None


def convert(hint: Any, value: Any, name: str) -> Any:
    """Convert one YAML value to the declared type, or raise a UserError that names the parameter.

    KFP hands every number over as a float and `dvc exp run -S` writes 1e-06 without a dot, which YAML
    reads as text; so an integral float counts as an int and a numeric text as a float, nothing else.
    """
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, name)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in args:
            return value
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(arg for arg in args if arg is not type(None)), value, name)
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        if dataclasses.is_dataclass(args[1]):
            value = {key: complete(value, key, f"{name}.") for key in value}
        return {str(key): convert(args[1], item, f"{name}.{key}") for key, item in value.items()}
    elif hint is bool and isinstance(value, bool):
        return value
    elif hint is int and not isinstance(value, bool) and (isinstance(value, int) or _is_integral(value)):
        return int(value)
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif hint is str and isinstance(value, str):
        return value
    raise UserError(f"{name} must be {describe(hint)}, got {cause(repr(value))}")


def _is_integral(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else describe(arg) for arg in args)
    if origin is tuple:
        return f"a list, each {describe(args[0])}"
    if origin is dict:
        return f"a mapping, each {describe(args[1])}" if args[1] is not Any else "a mapping"
    if dataclasses.is_dataclass(hint):
        return "a mapping of " + ", ".join(field.name for field in dataclasses.fields(hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
