"""The doors: text files are read in one place, and weights are written in one."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.wiring.rooms import PACKAGE

#: A call by module and name, or of any object's method, that reads text from a file or makes sense of a text.
READERS = {
    "json.load", "json.loads", "yaml.safe_load", "yaml.safe_load_all", "yaml.load", "yaml.parse", "yaml.compose",
    "csv.reader", "csv.DictReader", ".read_text",
}  # fmt: skip
WRITERS = {"save_file"}
#: The doors themselves, and what need not go through them.
EXCEPTIONS = {
    "files/texts.py": "the door of texts",
    "files/outputs.py": "the door of weights",
    "sources/download/worker.py": "runs in img2dataset's environment, which has no un2clip; reads its own argument",
    "sources/download/__init__.py": "the end of img2dataset's log, whatever is in it, for a message",
    "cluster/refusals.py": "the answer of the Kubernetes API, and not a file",
    "models/converting.py": "copies a configuration of open_clip's by way of JSON, where tuples become lists",
    "evaluation/mllm/tables.py": "a table of questions holds its pictures, so it is larger than a text may be",
    "tracking/served.py": "is served by MLflow, without un2clip",
    "datasets/parts.py": "a line of JSON a sample, of which there are too many for a whole text",
    "doctor.py": "the kernel's own files of limits",
    "processes.py": "the kernel's own files of processes",
}


def called(tree: ast.AST) -> Iterator[str]:
    """The name of everything that is called: `module.name`, `name`, and `.name` of whatever object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield f".{node.func.attr}"
            if isinstance(node.func.value, ast.Name):
                yield f"{node.func.value.id}.{node.func.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def opened_as_text(tree: ast.AST) -> bool:
    """Whether a file is opened to be read as text: `.open()` or `open(...)` with no mode, or with `r`."""
    for node in ast.walk(tree):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if name == "open" and isinstance(node, ast.Call):
            of_path = isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name)
            if of_path and (not node.args or ast.unparse(node.args[0]) in ("'r'", "'rt'")):
                return True
    return False


def test_texts_are_read_and_weights_are_written_in_one_place() -> None:
    """No other file calls a parser, reads a text, or writes safetensors, but for a short list with its reasons."""
    found = {
        path.relative_to(PACKAGE).as_posix(): sorted((READERS | WRITERS) & set(called(ast.parse(path.read_text()))))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: calls for name, calls in found.items() if calls and name not in EXCEPTIONS} == {}
    assert {name for name in EXCEPTIONS if not found[name]} == set(), "an exception that is none any more"


def test_no_file_is_opened_as_text_to_be_read() -> None:
    """A handle would read in whatever encoding the machine has."""
    opening = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if opened_as_text(ast.parse(path.read_text()))
    ]
    assert opening == []


def test_calls_are_seen_in_every_form(tmp_path: Path) -> None:
    """Of a module, of an object, of what a call gives."""
    tree = ast.parse("json.loads(a)\n(a / b).read_text()\nsave_file(x)\nwith (a / b).open() as f:\n    pass\n")
    assert {"json.loads", ".read_text", "save_file"} <= set(called(tree)) and opened_as_text(tree)
    assert not opened_as_text(ast.parse("path.parent.open('rb')\nImage.open(x)\n(a / b).open('w')\n"))
