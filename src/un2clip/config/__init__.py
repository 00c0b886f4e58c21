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
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from un2clip.config.files import FILES, flags, read_files, read_params, read_yaml, split, unite
from un2clip.config.overlays import RENAMED, complete, flatten, merge, stack, unknown
from un2clip.errors import UserError

__all__ = [
    "FILES", "RENAMED", "at_least", "build", "convert", "describe", "flags", "flatten", "lookup", "merge", "read_files",
    "read_params", "read_yaml", "split", "stack", "unite",
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


def build(cls: type[T], values: Any, name: str) -> T:
    """Build the dataclass `cls` from a mapping; `name` is the section's name, for messages.

    Raises:
        UserError: a key is unknown, missing or mistyped, or the class's own `__post_init__` refuses it.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name} must be a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise UserError(unknown(f"{name}.{key}", names, values[key]))
    for key in names:
        if key not in values:
            raise UserError(f"missing parameter {name}.{key}: {describe(hints[key])}")
    converted = {key: convert(hints[key], values[key], f"{name}.{key}") for key in names}
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
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    elif hint is str and isinstance(value, str):
        return value
    raise UserError(f"{name} must be {describe(hint)}, got {value!r}")


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
        return f"a mapping, each {describe(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "a mapping of " + ", ".join(field.name for field in dataclasses.fields(hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
