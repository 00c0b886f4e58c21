"""Files as they come: text, JSON, YAML and CSV, damaged, hostile or another editor's; and as they are written."""

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from un2clip.__main__ import main
from un2clip.config import read_params
from un2clip.errors import UserError, cause, reason, shown
from un2clip.evaluation.benchmarks.mmvp_vlm import read_questions
from un2clip.evaluation.classification import open_classification
from un2clip.evaluation.dense.layouts import IGNORED
from un2clip.evaluation.dense.masks import classes_of
from un2clip.files import texts
from un2clip.files.outputs import permit, replaced, save_tensors
from un2clip.stages import run_stage
from un2clip.stages.ingest import Ingest, ingest

BOM = b"\xef\xbb\xbf"
#: A billion in ten lines: each is ten of the one before.
BOMB = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def written(tmp_path: Path, content: bytes | str, name: str = "file") -> Path:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, mark: bytes) -> None:
    """Editors of Windows begin a file with one; every reader gives the same with it and without."""
    assert texts.read_text(written(tmp_path, mark + "büro\n".encode())) == "büro\n"
    assert texts.read_lines(written(tmp_path, mark + b"a\r\nb\rc\n\nd")) == ["a", "b", "c", "", "d"]
    assert texts.read_json(written(tmp_path, mark + b'{"a": [1]}')) == {"a": [1]}
    assert texts.read_yaml(written(tmp_path, mark + b"a: [1, x]")) == {"a": [1, "x"]}
    rows = texts.read_csv(written(tmp_path, mark + b'k,v\r\n1,"a, ""b""\nc"\r\n'), ["k", "v"])
    assert rows == [(3, {"k": "1", "v": 'a, "b"\nc'})]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a\nb\xfccher".encode("latin-1"), r"file, line 2 is not UTF-8 \(byte 3 is 0xFC\); save it as UTF-8"),
        (b"a\xff\xfeb", r"line 1 is not UTF-8 \(byte 1 is 0xFF\)"),
        ("a,b".encode("utf-16"), "file is UTF-16; save it as UTF-8"),
        ("a\nb".encode("utf-16-le"), "line 1 has a NUL: it is damaged, or UTF-16"),
    ],
)
def test_what_is_not_utf8_is_one_line_with_the_place(tmp_path: Path, content: bytes, says: str) -> None:
    for read in (texts.read_text, texts.read_lines, texts.read_json, texts.read_yaml, lambda f: texts.read_csv(f, "a")):
        with pytest.raises(UserError, match=says):
            read(written(tmp_path, content))


def test_every_text_of_a_user_says_how_to_save_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An overlay, a table and a list of classes as Latin-1: status 2, one line each."""
    overlay = written(tmp_path, "images: data/b\xfccher\n".encode("latin-1"), "overlay.yaml")
    assert main(["flags", str(overlay)]) == 2
    said = capsys.readouterr().err
    assert "overlay.yaml, line 1 is not UTF-8 (byte 14 is 0xFC); save it as UTF-8" in said and said.count("\n") == 1
    (tmp_path / "MLLM_VLM Images").mkdir()
    written(tmp_path, "Question ID,Type,Statement\n1,A,b\xe9b\xe9\n".encode("latin-1"), "Questions.csv")
    with pytest.raises(UserError, match="Questions.csv, line 2 is not UTF-8"):
        read_questions(tmp_path)
    (tmp_path / "zeroshot-two/test").mkdir(parents=True)
    written(tmp_path / "zeroshot-two/test", b"", "0.tar")
    written(tmp_path / "zeroshot-two", "a\nb\xe9\n".encode("latin-1"), "classnames.txt")
    with pytest.raises(UserError, match="classnames.txt, line 2 is not UTF-8"):
        open_classification(tmp_path / "zeroshot-two", lambda image: torch.zeros(3, 1, 1))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "file is not valid JSON: Expecting property name"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands in it twice"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a": NaN}', "NaN is no number"),
        ("[1e999]", "1e999 is out of range"),
        ("[" + "9" * 5000 + "]", "not valid JSON: Exceeds the limit"),
        ('["\\ud800"]', "not valid JSON: .*surrogates not allowed"),
        ('{"a": "\x1b[31m"}', "not valid JSON: Invalid control character"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        texts.read_json(written(tmp_path, content))
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1", "file is not valid YAML: .*line 1"),
        ("a: 1\nb: 2\n'a': 3\n", "line 3: the key 'a' stands there twice"),
        ("a: {x: 1, x: 2}", "the key 'x' stands there twice"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        (BOMB, "says more than 500000 things, its aliases written out"),
        ("a: &a [*a]", "the alias a stands within what it stands for"),
        ("a: *b", "alias b stands within what it stands for, or for nothing"),
        (f"a: {'9' * 5000}", "not valid YAML: Exceeds the limit"),
        ("a: 2024-13-45", "not valid YAML: month must be in"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_none_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    """A bomb of aliases takes no time: it is counted before anything is made of it."""
    started = time.process_time()
    with pytest.raises(UserError, match=says) as error:
        texts.read_yaml(written(tmp_path, content))
    assert len(str(error.value)) < 400 and time.process_time() - started < 5


def test_a_bomb_in_an_overlay(tmp_path: Path) -> None:
    """It is read, and laid over the numbers, and would be flattened into names a thousand million times."""
    params, overlay = written(tmp_path, "x: 1", "params.yaml"), written(tmp_path, BOMB, "overlay.yaml")
    with pytest.raises(UserError, match="overlay.yaml is not valid YAML: it says more than"):
        read_params(params, [overlay])


def test_sensible_aliases_are_read(tmp_path: Path) -> None:
    """Anchors, merges and the same key in several mappings."""
    content = "base: &b {x: 1, y: [1, 2]}\nother: {<<: *b, x: 3}\nagain: *b\n"
    assert texts.read_yaml(written(tmp_path, content)) == {
        "base": {"x": 1, "y": [1, 2]}, "other": {"x": 3, "y": [1, 2]}, "again": {"x": 1, "y": [1, 2]}
    }  # fmt: skip
    assert texts.read_yaml(written(tmp_path, "a: 1\n---\nb: 2\n"), several=True) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("k;v\n", "must have the columns k, v, each once; got"),
        ("", "must have the columns k, v, each once; got"),
        ("k,v\n1,2,3\n", "line 2: need 2 values"),
        ('k,v\n1,"a\n2,b\n', "unexpected end of data"),
        ("k,v\n1,\x1b[31m\n", r"line 2 has the control character '\\x1b'"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    """Without the end of a quote all further rows would be one value."""
    with pytest.raises(UserError, match=says):
        texts.read_csv(written(tmp_path, content), ["k", "v"])


def test_a_table_may_have_more_columns_where_that_is_said(tmp_path: Path) -> None:
    """In any order, each once."""
    assert texts.read_csv(written(tmp_path, "v,k\n1,2\n"), ["k"], more=True) == [(2, {"v": "1", "k": "2"})]
    for content in ("v,w\n", "k,v,v\n"):
        with pytest.raises(UserError, match="must have the columns k, each once; got"):
            texts.read_csv(written(tmp_path, content), ["k"], more=True)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file has more than 1e-06 MB"):
        texts.read_text(written(tmp_path, "ab"), largest=1)


@pytest.mark.parametrize("labels", [[0, 500_000_000], [-1, 0], [0, 7]])
def test_labels_that_no_class_has_are_named(labels: list[int]) -> None:
    """Neither gigabytes for a table up to the label, nor a class counted from the end."""
    with pytest.raises(UserError, match=f"m.png has the label {[x for x in labels if x][0]}, which no class has"):
        classes_of(np.array([labels], np.int64), {0: IGNORED, 1: 0, 2: 1}, "m.png")
    found = classes_of(np.array([[0, 1, 2]], np.uint8), {0: IGNORED, 1: 0, 2: 1}, "m.png")
    assert found.tolist() == [[IGNORED, 0, 1]]


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("http://user:p@ss@host:5000/x", "http://***@host:5000/x"),
        ("http://user:p/ss@host", "http://***@host"),
        ("postgresql://user:p?w@host/db", "postgresql://***@host/db"),
        ("https://host/a?token=secret&x=1#b", "https://host/a?token=***&x=***#b"),
        ("with url: /api?token=secret (Caused by", "with url: /api?token=*** (Caused by"),
        ("http://host/a@b", "http://host/a@b"),
        ("git@github.com:a/b", "git@github.com:a/b"),
    ],
)
def test_secrets_in_addresses_are_hidden(address: str, seen: str) -> None:
    """In every message, and in every cause."""
    assert str(UserError(f"no {address}")) == f"no {seen}"
    assert reason(OSError(address)) == f"OSError: {seen}" and shown(address) == seen


def test_names_are_printed_with_their_escapes() -> None:
    """What a terminal would obey, what turns a line round, and bytes of a name that are no UTF-8."""
    name = "a\x1b[2J\x07\u202eb\udce9\nc"
    assert str(UserError(f"{name}: é")) == r"a\x1b[2J\x07\u202eb\udce9\nc: é"
    assert str(UserError("two", "lines")) == "two\nlines"
    assert len(cause("x" * 10_000)) == 200


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_weights_have_the_permissions_of_their_neighbours(tmp_path: Path, umask: int) -> None:
    """safetensors gives a file to its owner alone; here it is as any file that the same process writes."""
    neighbour = written(tmp_path, "x")
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "deep").mkdir()
    save_tensors({"a": torch.zeros(2)}, tmp_path / "deep/b.safetensors")
    (tmp_path / "deep/b.safetensors").chmod(0o600)
    permit(tmp_path)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE(neighbour.stat().st_mode)} == {0o666 & ~umask}


def test_every_output_has_the_permissions_of_its_neighbours(tiny) -> None:
    """World, shards, networks and latents."""
    mask = os.umask(0o022)
    os.umask(mask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tiny.folder.rglob("*") if path.is_file()}
    assert {path for path, mode in modes.items() if mode != 0o666 & ~mask} == set()
    assert sum(path.suffix == ".safetensors" for path in modes) > 6


def test_a_folder_that_is_a_link_stays_one(tiny, tmp_path: Path) -> None:
    """To another disk: what is new lies there, nothing lies beside the link, and twice is as once."""
    disk, here = tmp_path / "disk", tmp_path / "here"
    (disk / "shards").mkdir(parents=True)
    here.mkdir()
    (here / "shards").symlink_to(disk / "shards")
    for _ in range(2):
        ingest(tiny.section(Ingest, "ingest"), images=tiny.images, shards=here / "shards")
        assert (here / "shards").is_symlink() and (disk / "shards/index.json").is_file()
        assert [path.name for path in here.iterdir()] == [path.name for path in disk.iterdir()] == ["shards"]


def test_a_link_to_nowhere_is_named(tiny, tmp_path: Path) -> None:
    """A disk that is not mounted: nothing is made in the place where it would be."""
    (tmp_path / "images").symlink_to(tmp_path / "disk/images")
    names = {name: tmp_path / name for name in ("images", "benchmarks", "instructions")}
    with pytest.raises(UserError, match="images is a link to .*disk/images, which is not there; make it, or mount"):
        run_stage("shapes", tiny.params["shapes"], seed=1, **names)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """After an error the old one is there; what a killed call left is in nobody's way."""
    (tmp_path / "f").mkdir()
    written(tmp_path / "f", "old")
    for leftover in (".f.partial", ".f.older"):
        (tmp_path / leftover).mkdir()
        written(tmp_path / leftover, "x")
    with pytest.raises(RuntimeError), replaced(tmp_path / "f") as new:
        written(new, "new")
        raise RuntimeError
    assert texts.read_text(tmp_path / "f/file") == "old"
    with replaced(tmp_path / "f") as new:
        written(new, "new")
    assert texts.read_text(tmp_path / "f/file") == "new" and [path.name for path in tmp_path.iterdir()] == ["f"]
