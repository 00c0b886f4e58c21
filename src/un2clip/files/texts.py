"""The one door for files of text: plain, lines, JSON, YAML and CSV, which may be hostile, damaged or another editor's.

Whatever is wrong with one is a UserError of one line that names the file and, where there is one, the place.
"""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from un2clip.errors import UserError, cause

File = Path | Traversable
#: Of a file. Parsed JSON takes up to twenty times its bytes; the longest that is written here, the scores of a large
#: segmentation set, has 30 MB.
LARGEST = 100_000_000
#: Of mappings and lists within each other, and of nodes of YAML, which aliases multiply.
DEPTH, NODES = 64, 500_000
#: Of a text in YAML that count as one node.
LETTERS_A_NODE = 64
_OTHERS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", b"\0\0\xfe\xff": "UTF-32"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(file: File, *, largest: int = LARGEST) -> str:
    """A file of UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, has more than `largest` bytes, or is no UTF-8.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or cause(error)}") from None
    if len(data) > largest:
        raise UserError(f"{file} has more than {largest / 1e6:g} MB, the most that is read of such a file")
    return decode(data, str(file))


def decode(data: bytes, name: str) -> str:
    """The text of some bytes, by the rules of `read_text`; `name` is that of the file, for messages."""
    for mark, encoding in _OTHERS.items():
        if data.startswith(mark):
            raise UserError(f"{name} is {encoding}; save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} is 0x{data[error.start]:02X}"
        raise UserError(f"{name}, line {line} is not UTF-8 ({byte}); save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{name}, line {line} has a NUL: it is damaged, or UTF-16; save it as UTF-8")
    return text


def read_lines(file: File) -> list[str]:
    """The lines of a file without their ends, which may be those of any system.

    Raises:
        UserError: as `read_text`, or a line has a control character.
    """
    text = read_text(file).replace("\r\n", "\n").replace("\r", "\n")
    lines = text.removesuffix("\n").split("\n") if text else []
    _check_lines(lines, file)
    return lines


def read_csv(file: File, columns: Sequence[str], *, more: bool = False) -> list[tuple[int, dict[str, str]]]:
    """The rows of a file of comma-separated values under its first row, each with the number of its line.

    Args:
        columns: what the first row must hold; with `more`, other columns may stand beside them.

    Raises:
        UserError: as `read_lines`; or it has other columns, one twice, a row of another length, or a quote that does
            not end.
    """
    text = read_text(file)
    _check_lines(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), file)
    rows: list[tuple[int, dict[str, str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if not (set(columns) <= set(header) if more else header == list(columns)) or len(set(header)) < len(header):
            raise UserError(f"{file} must have the columns {', '.join(columns)}, each once; got {cause(header)}")
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(f"{file}, line {reader.line_num}: need {len(header)} values; got {cause(row)}")
            rows += [(reader.line_num, dict(zip(header, row, strict=True)))] if row else []
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {cause(error)}") from None
    return rows


def read_json(file: File, *, nan: bool = False, largest: int = LARGEST) -> Any:
    """The content of a JSON file.

    Args:
        nan: whether NaN and Infinity may stand in it, as Python writes them.
        largest: bytes that it may have.

    Raises:
        UserError: as `read_text`; or it is no JSON, nested too deeply, has a key twice or a number out of range.
    """
    return parse_json(read_text(file, largest=largest), str(file), nan=nan)


def parse_json(text: str, name: str, *, nan: bool = False) -> Any:
    """What a text of JSON says, by the rules of `read_json`; `name` is that of its file, for messages."""
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=None if nan else _no_constant
        )
        _check_depth(content)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()  # half of a pair, which can neither be printed nor hashed
    except RecursionError:
        raise UserError(f"{name} is nested deeper than {DEPTH} levels") from None
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {cause(error)}") from None
    return content


def read_yaml(file: File, *, several: bool = False) -> Any:
    """The content of a YAML file; with `several`, of the first of its documents.

    Raises:
        UserError: as `read_text`; or it is no YAML, has a key twice, is nested too deeply, or grows too large by its
            aliases.
    """
    text = read_text(file)
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            return loader.get_data() if several else loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that there is not
        raise UserError(f"{file} is not valid YAML: {cause(error)}") from None


def yaml_nodes(text: str, name: str) -> yaml.Node | None:
    """A YAML text as nodes that know their places in it, for who wants its comments; None where it is empty.

    Raises:
        UserError: as `read_yaml`; `name` is the file's, for the message.
    """
    try:
        _check_events(text)
        node: yaml.Node | None = yaml.compose(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid YAML: {cause(error)}") from None
    return node


def is_yaml_text(word: str) -> bool:
    """Whether a word without quotes is a text to YAML, and no number, truth or null."""
    return isinstance(yaml.safe_load(word), str)


def _check_lines(lines: Iterable[str], file: File) -> None:
    for number, line in enumerate(lines, 1):
        if found := _CONTROL.search(line):
            raise UserError(f"{file}, line {number} has the control character {found[0]!r}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands in it twice")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text} is out of range")
    return number


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(content: Any) -> None:
    level: list[Any] = [[content]]
    for _ in range(DEPTH + 1):  # by exact types, which is twice as fast on a tokenizer's hundred thousand nodes
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise RecursionError


class _Open:
    """A mapping or a list of YAML that has not ended yet."""

    def __init__(self, event: yaml.Event) -> None:
        self.anchor = event.anchor  # type: ignore[attr-defined]
        self.keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self.children, self.nodes = 0, 1


def _check_events(text: str) -> None:
    """Hold a text against the limits before anything is made of it: the events come one by one, whatever they nest.

    An alias counts as all the nodes that it stands for; ten lines can say ten thousand million.
    """
    stack: list[_Open] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Open(event))
            if len(stack) > DEPTH:
                raise ValueError(f"it is nested deeper than {DEPTH} levels")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias {event.anchor} stands within what it stands for, or for nothing")
            anchor, nodes = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, nodes = event.anchor, 1 + len(event.value) // LETTERS_A_NODE
            _check_key(stack, event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = stack.pop()
            anchor, nodes = ended.anchor, ended.nodes
        else:
            continue
        if anchor is not None:
            sizes[anchor] = nodes
        if stack:
            stack[-1].children += 1
            stack[-1].nodes += nodes
            nodes = stack[-1].nodes
        if nodes > NODES:
            raise ValueError(f"it says more than {NODES} things, its aliases written out")


def _check_key(stack: list[_Open], event: yaml.ScalarEvent) -> None:
    if not stack or stack[-1].keys is None or stack[-1].children % 2:
        return
    if event.value in stack[-1].keys and event.value != "<<":
        line = event.start_mark.line + 1 if event.start_mark else 0
        raise ValueError(f"line {line}: the key {event.value!r} stands there twice")
    stack[-1].keys.add(event.value)
