"""How files are damaged, and what an independent reader says of the damaged one."""

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Mutation = tuple[str, bytes]
#: Mappings of a stage's file that may hold anything: they are shown, and compared as a whole.
FREE = ("params", "captions")
NUL_AND_OTHERS = (b"\xff\xfe", b"\x00", b"\xe9", b"\x1b[31m", b"\xef\xbb\xbf", b"\xc3")
DEEP = "[" * 200 + "]" * 200
#: What is put in the place of a node of JSON, written as it stands in the file.
WRONG = (
    "null", "true", '"x"', '"1"', "[]", "{}", "-1", "0", "7", "1000000", "0.5", "1e308", "1e999", "9" * 400, "9" * 5000,
    "NaN", "-Infinity", '"' + "x" * 300 + '"', '"../../x"', '"\\u001b[2J"', '"\\ud800"', DEEP, "[[1], {}]",
)  # fmt: skip
BOMB = b"a0: &a0 x\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 10)
)


def mutate(rng: random.Random, file: Path) -> Mutation:
    """A name for what was done, and the file's new content."""
    data = file.read_bytes()
    ways: list[Callable[[random.Random, bytes], Mutation]] = [_flip, _truncate, _insert, _cut, _empty, _twice, _utf16]
    suffix = file.suffix
    if suffix == ".json" and rng.random() < 0.65:
        return _structured(rng, json.loads(data))
    if suffix in (".yaml", ".yml") and rng.random() < 0.6:
        return ("alias bomb", data + BOMB) if rng.random() < 0.1 else _structured(rng, yaml.safe_load(data))
    if suffix == ".safetensors" and rng.random() < 0.7:
        return _tensors(rng, data)
    return rng.choice(ways[:4] if rng.random() < 0.85 else ways)(rng, data)


def _flip(rng: random.Random, data: bytes) -> Mutation:
    at = rng.randrange(len(data))
    return "bit flip", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _truncate(rng: random.Random, data: bytes) -> Mutation:
    return "truncated", data[: rng.randrange(len(data))]


def _insert(rng: random.Random, data: bytes) -> Mutation:
    at, what = rng.randrange(len(data) + 1), rng.choice(NUL_AND_OTHERS)
    return f"insert {what.hex()}", data[:at] + what + data[at:]


def _cut(rng: random.Random, data: bytes) -> Mutation:
    at, length = rng.randrange(len(data)), rng.choice((1, 7, 60, 512))
    return "cut out", data[:at] + data[at + length :]


def _empty(rng: random.Random, data: bytes) -> Mutation:
    return "empty", b""


def _twice(rng: random.Random, data: bytes) -> Mutation:
    return "twice", data + data


def _utf16(rng: random.Random, data: bytes) -> Mutation:
    return "UTF-16", data.decode("utf-8", "replace").encode("utf-16")


def _nodes(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every node below the whole."""
    for key, child in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from _nodes(child, (*path, key))


def _structured(rng: random.Random, content: Any) -> Mutation:
    """A node of another type, a key left out, twice or of another name: written as JSON, which YAML reads too."""
    mark = "@@here@@"
    if not isinstance(content, dict | list) or not content or rng.random() < 0.03:
        return "another whole", rng.choice(WRONG).encode()
    way = rng.choice(list(_nodes(content)))
    parent = content
    for key in way[:-1]:
        parent = parent[key]
    key, what = way[-1], rng.random()
    if what < 0.6:
        wrong = rng.choice(WRONG)
        parent[key] = mark
        return f"{wrong[:8]} for a node", json.dumps(content).replace(f'"{mark}"', wrong, 1).encode()
    if what < 0.75 or not isinstance(parent, dict):
        del parent[key]
        return "a node left out", json.dumps(content).encode()
    if what < 0.9:
        value, name = parent[key], json.dumps(str(key))
        parent[key] = mark
        text = json.dumps(content)
        return "a key twice", text.replace(
            f'"{mark}"', f"{rng.choice(WRONG[:12])}, {name}: {json.dumps(value)}", 1
        ).encode()
    parent[f"{key}x"] = parent.pop(key)
    return "a key renamed", json.dumps(content).encode()


def _tensors(rng: random.Random, data: bytes) -> Mutation:
    """A header of safetensors that says something else, or values that are not finite."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([each for each in header if each != "__metadata__"])
    what = rng.choice(("missing", "renamed", "integer", "shape", "not finite", "offsets", "long header"))
    if what == "missing":
        del header[name]
    elif what == "renamed":
        header[f"{name}x"] = header.pop(name)
    elif what == "integer":
        header[name]["dtype"] = {2: "I16", 4: "I32", 8: "I64"}[_bytes(header[name]["dtype"])]
    elif what == "shape":
        header[name]["shape"] = [1, math.prod(header[name]["shape"])]
    elif what == "offsets":
        header[name]["data_offsets"] = [0, 10**12]
    elif what == "not finite":
        at, size = header[name]["data_offsets"][0], _bytes(header[name]["dtype"])
        body = (
            body[:at] + {2: b"\x00\x7e", 4: b"\x00\x00\xc0\x7f", 8: b"\0" * 6 + b"\xf8\x7f"}[size] + body[at + size :]
        )
    text = json.dumps(header).encode()
    size = 10**15 if what == "long header" else len(text)
    return f"tensor {what}", struct.pack("<Q", size) + text + body


def _bytes(dtype: str) -> int:
    return int(dtype.lstrip("BFIU")) // 8


def is_legal(file: Path, before: bytes, *, own: bool) -> bool:
    """Whether a damaged file still is a legal one of its kind, by another reader than the program's.

    Args:
        own: a stage wrote it; then it must have the keys and the types that it had, too.
    """
    data = file.read_bytes()
    try:
        if file.suffix == ".json":
            now, then = _strict(data), _strict(before)
            return not own or _same_shape(now, then)
        if file.suffix == ".safetensors":
            return _finite_tensors(data) == _finite_tensors(before)
        if file.suffix in (".yaml", ".txt", ".csv", ".tsv"):
            return "\0" not in data.decode("utf-8")
    except Exception:  # it is none, whatever the other reader calls it
        return False
    return not own


def _strict(data: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)


def _same_shape(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_shape(one[key], other[key]) for key in one if key not in FREE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_shape, one, other))
    numbers = type(one) in (int, float) and type(other) in (int, float)
    return numbers or type(one) is type(other) or {type(one), type(other)} == {str, type(None)}


def _finite_tensors(data: bytes) -> dict[str, str]:
    from safetensors.torch import load

    tensors = load(data)
    if not all(value.is_floating_point() and value.isfinite().all() for value in tensors.values()):
        raise ValueError
    return {name: f"{tuple(value.shape)}" for name, value in tensors.items()}
