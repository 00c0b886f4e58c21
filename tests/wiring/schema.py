"""What editors know of the numbers, and docs/params.md: `make schema` writes params.schema.json and its like.

Types, allowed words and required keys are the dataclasses' by the rules of `config.build`, descriptions the comments
of the YAML files. A file's schema has the keys that the file holds; together they have every key.
"""

import json
import re
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from un2clip.cli.keys import HINTS, LIKE_COMMENT, Key, comments, has_entries, is_section, read_keys
from un2clip.config import convert, describe, read_files, unite
from un2clip.config.overlays import LIKE
from un2clip.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/params.md"
SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string"}
Schema = dict[str, Any]


def schema_path(file: str) -> Path:
    """Where the schema of a file of numbers lies: beside it, as its first line says."""
    return ROOT / f"{Path(file).stem}.schema.json"


def file_schema(file: str, text: str, content: Mapping[str, Any], hints: Mapping[str, Any] = HINTS) -> Schema:
    """The JSON Schema of one file of numbers.

    Args:
        file: its name, for the title.
        text: the file, for the comments.
        content: the same, read.
        hints: the type of each key at its top.
    """
    said = comments(read_keys(text, hints))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": file, "description": header(text)}
    return head | _mapping({key: hints[key] for key in content}, said, "", content)


def schema(hint: Any, said: Mapping[str, str], place: str, held: Any = None) -> Schema:
    """The schema of one type.

    Args:
        hint: as `config.convert` takes it.
        said: the comment at each place.
        place: in full, with * for the name of an entry.
        held: what the file holds here, where another file may hold the rest.
    """
    about = {"description": said[place]} if place in said and not place.endswith("*") else {}
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return about | _mapping(get_type_hints(hint), said, f"{place}.", held)
    if origin is Literal:
        return about | {"enum": list(args)}
    if origin in (Union, types.UnionType):
        inner = schema(next(arg for arg in args if arg is not type(None)), said, place, held)
        inner.pop("description", None)
        return about | ({"anyOf": [inner, {"type": "null"}]} if type(None) in args else inner)
    if origin is tuple:
        return about | {"type": "array", "items": schema(args[0], {}, "")}
    if has_entries(hint):
        return about | {"type": "object", "additionalProperties": _entry(schema(args[1], said, f"{place}.*"))}
    if origin is dict:
        return about | {"type": "object", "additionalProperties": schema(args[1], {}, "")}
    return about | {"type": SIMPLE[hint]}


def partial(whole: Any) -> Any:
    """The same schema with no key required: of an overlay, or of what an entry has beside `like`."""
    if isinstance(whole, list):
        return [partial(each) for each in whole]
    if not isinstance(whole, dict):
        return whole
    return {key: partial(each) for key, each in whole.items() if key != "required" or isinstance(each, dict)}


def header(text: str) -> str:
    """The lines of comment at the top of a file, but for the one that names its schema."""
    lines = re.match(r"(#.*\n)*", text)[0].splitlines()  # type: ignore[index]
    return " ".join(line.lstrip("# ") for line in lines if "yaml-language-server" not in line)


def page(files: Mapping[str, str]) -> str:
    """docs/params.md: a table of every key, file by file."""
    parts = ["# Every number\n\nMade by `make schema` of the files themselves and their comments; do not edit.\n"]
    for file, text in files.items():
        rows = "".join(_row(key) for key in read_keys(text) if key.comment)
        parts.append(f"## {file}\n\n{header(text)}\n\n| name | type | value | meaning |\n|---|---|---|---|\n{rows}")
    return "\n".join(parts)


def written() -> dict[Path, str]:
    """What the command writes, file by file.

    Raises:
        UserError: a key that the dataclasses want stands in no file, or has a value that they refuse.
    """
    contents = read_files(ROOT / "params.yaml")
    numbers = unite(contents)
    if missing := [key for key in HINTS if key not in numbers]:
        raise UserError(f"none of {', '.join(contents)} has {', '.join(missing)}")
    for key, value in numbers.items():
        convert(HINTS[key], value, key)
    texts = {file: (ROOT / file).read_text() for file in contents}
    schemas = {schema_path(file): file_schema(file, texts[file], content) for file, content in contents.items()}
    made = {path: json.dumps(each, indent=1, ensure_ascii=False) + "\n" for path, each in schemas.items()}
    return made | {PAGE: page(texts)}


def _mapping(hints: Mapping[str, Any], said: Mapping[str, str], prefix: str, held: Any) -> Schema:
    within = held if isinstance(held, Mapping) else dict.fromkeys(hints)
    keys = [key for key in hints if key in within]
    properties = {key: schema(hints[key], said, f"{prefix}{key}", within[key]) for key in keys}
    return {"type": "object", "properties": properties, "required": keys, "additionalProperties": False}


def _entry(whole: Schema) -> Schema:
    """An entry of a mapping of dataclasses is whole, or is like another one and holds what differs."""
    alike = partial(whole)
    alike["properties"] = {LIKE: {"description": LIKE_COMMENT, "type": "string"}} | alike["properties"]
    return {"if": {"required": [LIKE]}, "then": alike, "else": whole}


def _row(key: Key) -> str:
    kind = "" if is_section(key.hint) else describe(key.hint)
    value = f"`{key.text}`" if key.text else ""
    return f"| `{key.name}` | {kind} | {value} | {key.comment.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
