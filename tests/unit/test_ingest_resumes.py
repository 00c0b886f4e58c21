"""`ingest` as map, reduce, map: the same bytes however it was cut up, and nothing made is lost, whatever ends it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks import check_and_die_once
from tests.unit.test_disks import small  # noqa: F401  # a fixture
from tests.unit.test_ingest import DEFAULTS, HTML, files_below, good, run, write_tar
from un2clip.config import build
from un2clip.datasets import ingesting, parts
from un2clip.datasets.engine import run_tasks
from un2clip.datasets.parts import Part, check_tar
from un2clip.datasets.sources import find_sources
from un2clip.errors import DiskRefused, UserError
from un2clip.files.outputs import only_one
from un2clip.stages.ingest import Ingest, ingest

NUMBERS = {"short_side_px": 8, "heldout_fraction": 0.3, "duplicates": "near"}
#: Kills itself at the call of which function, and which call; a line for each sample that is checked.
SCRIPT = """
import itertools, json, os, signal, sys
from pathlib import Path
from un2clip.config import build
from un2clip.datasets import cutting, deciding, ingesting
from un2clip.stages.ingest import Ingest, ingest

module, name, last, folder, params = sys.argv[1:]
def counted(module, name, last, log=None):
    function, calls = getattr(module, name), itertools.count(1)
    def counting(*args):
        call = next(calls)  # in one step: threads count too
        if log:
            os.write(log, b".")
        if call == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    setattr(module, name, counting)
log = os.open(Path(folder) / "checked", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
counted(ingesting, "check", int(last) if name == "check" else 0, log)
if name != "check" and module:
    counted(globals()[module], name, int(last))
ingest(build(Ingest, json.loads(params), "ingest"), images=Path(folder) / "images", shards=Path(folder) / "out/shards")
"""


def fill(folder: Path, tars: int, samples: int) -> None:
    """Tars with keys and pictures that repeat across them, and a page in each."""
    for tar in range(tars):
        page = [(f"{tar}.png", HTML), (f"{tar}.txt", b"x")]
        many = (good(f"{i}", (tar * samples + i) % (tars * samples - 5)) for i in range(samples))
        write_tar(folder / "images" / f"{tar}.tar", *many, page)


def the_parts(folder: Path, work: Path) -> list[Part]:
    section, images = build(Ingest, DEFAULTS | NUMBERS, "ingest"), folder / "images"
    work.mkdir(parents=True, exist_ok=True)
    return [
        Part(params=section, images=images, tar=tar, split=split, folder=work, threads=1)
        for split, tar in find_sources(images, folder / "out" / "shards")
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Eight tars, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("eight")
    fill(folder, 8, 6)
    run(folder, **NUMBERS)
    return folder, files_below(folder / "out")


@pytest.mark.parametrize("processes", [2, 7])
def test_any_number_of_workers_gives_the_same_bytes(made, processes: int) -> None:
    folder, expected = made
    assert len(expected) > 10
    run(folder, **NUMBERS, processes=processes)
    assert files_below(folder / "out") == expected


def test_any_order_of_completion_gives_the_same_bytes(made, monkeypatch) -> None:
    """The tars checked last to first, by other numbers of threads; then the stage checks none."""
    folder, expected = made
    for part in reversed(the_parts(folder, folder / "out" / ".shards.partial" / "parts")):
        check_tar(part)
    monkeypatch.setattr(parts, "check_in_order", None)
    run(folder, **NUMBERS)
    assert files_below(folder / "out") == expected


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    """kill -9 in two tars, the reduce and a shard: the same bytes, and at most 2 % of the samples checked again."""
    fill(tmp_path, 3, 170)
    numbers = NUMBERS | {"samples_per_shard": 40}
    run(tmp_path, **numbers)
    expected = files_below(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    points = [("ingesting", "check", 100), ("ingesting", "check", 250), ("deciding", "shard_bounds", 1)]
    points += [("deciding", "_cut", 2), ("cutting", "tar_member", 200)]
    ended = []
    for module, name, call in [*points, ("", "", 0)]:
        words = [module, name, str(call), str(tmp_path), json.dumps(DEFAULTS | numbers)]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", SCRIPT, *words], env=variables, capture_output=True)
        ended.append(done.returncode)
    assert ended == [-9] * len(points) + [0]
    checked, samples = (tmp_path / "checked").stat().st_size, 3 * 171
    assert samples <= checked <= samples * 1.02, checked
    assert files_below(tmp_path / "out") == expected


@pytest.mark.parametrize("tail", [b"{", b'{"key": "x"', b"\0" * 40, b'{"key": "x", "tar_bytes": 1, "crc": 3}\n'])
def test_a_torn_end_is_cut_off(made, tmp_path: Path, tail: bytes) -> None:
    """Half a line, zeros after a power cut, a line whose content is not there: from there on it is made again."""
    folder, _ = made
    part = the_parts(folder, tmp_path / "a")[0]
    check_tar(part)
    expected = {path.name: path.read_bytes() for path in part.folder.iterdir()}
    lines = expected[part.file("rows").name].splitlines(keepends=True)
    part.file("rows").write_bytes(b"".join(lines[:4]) + tail)
    part.file("json").write_bytes(expected[part.file("json").name].replace(b'"done": true', b'"done": false'))
    check_tar(part)
    assert {path.name: path.read_bytes() for path in part.folder.iterdir()} == expected


def test_a_tar_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Named; the other tar's part is kept; once nothing writes it any more the same command goes on."""
    fill(tmp_path, 2, 6)
    tar, check, calls = tmp_path / "images" / "1.tar", ingesting.check, []

    def growing(group, params):
        calls.append(group.key)
        if len(calls) == 9:
            write_tar(tar, good("other"), good("more"))
        return check(group, params)

    monkeypatch.setattr(ingesting, "check", growing)
    with pytest.raises(UserError, match=r"images/1.tar changed while it was read; let what writes it end"):
        run(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".shards.partial"]
    calls.clear()
    kept, _ = run(tmp_path)
    assert kept[-2:] == ["other", "more"] and calls == ["other", "more"]


def test_a_worker_that_dies_costs_nothing(made, tmp_path: Path, capsys) -> None:
    """Its tar is gone on with, and it is said."""
    folder, _ = made
    made_by = {}
    for name, task, processes in (("one", check_tar, 1), ("two", check_and_die_once, 2)):
        each = the_parts(folder, tmp_path / name)
        assert len(list(run_tasks(task, each, processes))) == 8
        (tmp_path / name / "died").unlink(missing_ok=True)
        made_by[name] = files_below(tmp_path / name)
    said = capsys.readouterr().err
    assert "un2clip: a worker died; done again: " in said and "0.tar" in said
    assert made_by["one"] == made_by["two"]


def test_a_disk_full_in_the_middle_of_a_shard_loses_nothing(tmp_path: Path, small: Path, monkeypatch, capsys) -> None:  # noqa: F811
    """Named, with what is free; with more room the same command checks no sample again."""
    write_tar(tmp_path / "images" / "0.tar", *(good(f"{i}", i) for i in range(300)))
    section = build(Ingest, DEFAULTS | {"samples_per_shard": 300}, "ingest")
    with pytest.raises(
        DiskRefused, match=r"^\S*small\S*: no space is left .*; make room, then the same command goes on"
    ):
        ingest(section, images=tmp_path / "images", shards=small / "shards")
    assert "has what was made so far; the same command goes on there" in capsys.readouterr().err
    assert not list(small.rglob("*.tar")) and list(small.rglob("*.data"))
    subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
    monkeypatch.setattr(parts, "check_in_order", None)
    ingest(section, images=tmp_path / "images", shards=small / "shards")
    assert "kept 300 of 300" in capsys.readouterr().out


def test_two_at_once_are_refused(made) -> None:
    folder, _ = made
    work = folder / "out" / ".shards.partial"
    work.mkdir(exist_ok=True)
    with only_one(work / "lock", ""), pytest.raises(UserError, match="another `un2clip ingest` writes .*; let it end"):
        run(folder)
