"""The files of numbers: params.yaml, and what lies beside it. A key stands in one of them and has one name in all."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from un2clip.config.overlays import WHOLE, merge, stack
from un2clip.errors import UserError
from un2clip.files.texts import File, is_yaml_text
from un2clip.files.texts import read_yaml as read_any

#: The method; the laptop world and its toy networks; `un2clip download`. A file may hold a part of a section.
FILES = ("params.yaml", "world.yaml", "download.yaml")
Content = Mapping[str, Any]
_PLAIN = re.compile(r"[A-Za-z_][\w./:@+-]*", re.ASCII)  # what needs no quotes in Hydra's grammar
#: Texts that DVC writes without quotes and YAML 1.1, by which params.yaml is read, takes for truths and times.
_OF_YAML_1_1 = re.compile(r"yes|no|on|off|[+-]?\d+(:\d+)+(\.\d*)?", re.IGNORECASE)
_KEY = re.compile(r"[\w./+ -]+", re.ASCII)  # what may be a key there, which has no quotes


def read_yaml(path: File) -> dict[str, Any]:
    """Read one YAML mapping; an empty, broken or absent file is a UserError that names it."""
    try:
        content = read_any(path)
    except UserError as error:
        hint = "" if path.is_file() else "; run from the repository's root or pass --params=FILE"
        raise UserError(f"{error}{hint}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of sections, got {type(content).__name__}")
    return content


def read_params(params: Path, overlays: Iterable[Path] = ()) -> dict[str, Any]:
    """All numbers: a params file with what lies beside it, and overlays over them; the later overlay wins.

    Args:
        params: params.yaml, or another file in its place. Of the other FILES those are read that are in its folder.
        overlays: files that may change any key of any of them.

    Raises:
        UserError: a file cannot be read, two files hold the same key, or an overlay adds one.
    """
    return merge(unite(read_files(params)), stack(map(read_yaml, overlays)))


def read_files(params: Path) -> dict[str, dict[str, Any]]:
    """The content of a params file and of each of the other FILES that is in its folder, by the file's name."""
    beside = [path for path in map(params.with_name, FILES[1:]) if path.is_file()]
    return {path.name: read_yaml(path) for path in (params, *beside)}


def unite(files: Mapping[str, Content], prefix: str = "") -> dict[str, Any]:
    """What several files hold, as one mapping.

    Raises:
        UserError: two of them hold the same key.
    """
    whole: dict[str, Any] = {}
    for key in dict.fromkeys(key for content in files.values() for key in content):
        holding = _holding(files, key)
        if len(holding) == 1:
            (whole[key],) = holding.values()
        elif key not in WHOLE and all(isinstance(value, Mapping) for value in holding.values()):
            whole[key] = unite(holding, f"{prefix}{key}.")
        else:
            raise UserError(f"{prefix}{key} stands in {' and in '.join(holding)}; it must stand in one of them")
    return whole


def split(overlay: Content, files: Mapping[str, Content]) -> dict[str, dict[str, Any]]:
    """The parts of an overlay: for each file what changes keys that it holds.

    Args:
        overlay: what `merge` takes over the united files.
        files: name -> content, as `read_files` gives them.
    """
    parts: dict[str, dict[str, Any]] = {file: {} for file in files}
    for key, value in overlay.items():
        holding = _holding(files, key)
        if len(holding) > 1 and isinstance(value, Mapping):
            for file, part in split(value, holding).items():
                if part:
                    parts[file][key] = part
        else:
            parts[next(iter(holding or files))][key] = value
    return parts


def flags(overlay: Content, files: Mapping[str, Content]) -> list[str]:
    """Write an overlay as `-S key=value` arguments of `dvc exp run`, or `-S FILE:key=value` for other files' keys.

    Args:
        overlay, files: as of `split`.
    """
    parts = split(overlay, files)
    return [
        word
        for file, part in parts.items()
        for text in _assignments(part, files[file])
        for word in ("-S", text if file == FILES[0] else f"{file}:{text}")
    ]


def _holding(files: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {file: content[key] for file, content in files.items() if key in content}


def _assignments(overlay: Content, base: Content, prefix: str = "") -> list[str]:
    """DVC takes new keys of a mapping only with a plus, keys without quotes, and no empty word."""
    texts: list[str] = []
    for key, value in overlay.items():
        if isinstance(value, Mapping) and key not in WHOLE:
            texts += _assignments(value, base.get(key, {}), f"{prefix}{key}.")
        else:
            plus = "+" if key not in base or isinstance(value, Mapping) and value else ""
            plain = isinstance(value, str) and _PLAIN.fullmatch(value) and is_yaml_text(value)
            texts.append(f"{plus}{prefix}{key}={value if plain else _in_hydra(value, f'{prefix}{key}')}")
    return texts


def _in_hydra(value: Any, name: str) -> str:
    """A value in the grammar that DVC has from Hydra: JSON, but for texts and the keys of mappings.

    Raises:
        UserError: names the parameter whose value that grammar, or a line of the shell, cannot hold.
    """
    if isinstance(value, Mapping):
        for key in map(str, value):
            if not _KEY.fullmatch(key) or not is_yaml_text(key):
                raise UserError(f"{name}: DVC's command line cannot say the key {key!r}; write it into params.yaml")
        return "{" + ",".join(f"{key}:{_in_hydra(each, name)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_in_hydra(each, name) for each in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if "\n" in value or "\0" in value or _OF_YAML_1_1.fullmatch(value):
        raise UserError(f"{name}: DVC's command line cannot say {value!r}; write it into params.yaml, in quotes")
    return '"' + re.sub(r'(\\*)("|\$\{|$)', lambda found: found[1] * 2 + "\\" * bool(found[2]) + found[2], value) + '"'
