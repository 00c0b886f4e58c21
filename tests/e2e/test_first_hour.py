"""The first commands in a new folder: what interrupts them leaves nothing that the next one trips over."""

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from un2clip import tracking
from un2clip.errors import UserError
from un2clip.tracking import local, refusals, store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("UN2CLIP_TRACKING", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Made:
    """A store without a run."""

    content: bytes
    seconds: float  # that its making took

    def tables(self, path: Path) -> int:
        with sqlite3.connect(path) as database:
            return int(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    child = forked(lambda: local.ensure(f"sqlite:///{path}", store.EXPERIMENT))
    began = time.monotonic()
    os.waitpid(child, 0)
    return Made(path.read_bytes(), time.monotonic() - began)


def forked(act: Callable[[], object]) -> int:
    """A process that has MLflow imported, and no store that it remembers, doing this."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    if child := os.fork():
        return child
    try:
        act()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def ends_well(act: Callable[[], object]) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(forked(act), 0)[1]) == 0


@pytest.mark.parametrize(("share", "number"), [(0.3, signal.SIGKILL), (0.5, signal.SIGINT), (0.9, signal.SIGKILL)])
def test_a_store_that_is_killed_while_it_is_made_is_made_again(folder: Path, made: Made, share, number) -> None:
    """At three moments of the making, by kill -9 and by Ctrl-C: there is no store, or a whole one."""
    child = forked(store.connect)
    time.sleep(share * made.seconds)
    os.kill(child, number)
    os.waitpid(child, 0)
    left = folder / "mlflow.db"
    whole = folder / "whole.db"
    whole.write_bytes(made.content)
    assert not left.exists() or made.tables(left) == made.tables(whole)
    assert ends_well(store.connect)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".mlflow")] == []


def test_two_first_commands_at_once_both_work(folder: Path) -> None:
    """Four of them: one makes the store, all have its experiment."""
    children = [forked(store.connect) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    with sqlite3.connect("mlflow.db") as database:
        names = [name for (name,) in database.execute("SELECT name FROM experiments ORDER BY experiment_id")]
    assert names == ["Default", store.EXPERIMENT]


@pytest.mark.parametrize("name", ["feature%2Fmasks", "what?now", "a#b", "50% ünïcode"])
def test_a_folder_of_any_name_holds_its_store(folder: Path, monkeypatch, name: str) -> None:
    """Store, run and artifact are below it and nothing beside it; what was kept is read back."""
    (folder / name).mkdir()
    monkeypatch.chdir(folder / name)
    monkeypatch.setenv("UN2CLIP_RUN", "odd")
    assert ends_well(_keep_and_read)
    assert [path.name for path in folder.iterdir()] == [name]
    assert {"mlflow.db", "mlruns", "out", "got"} == {path.name for path in Path.cwd().iterdir()}


def _keep_and_read() -> None:
    with tracking.stage_run("shapes", params={"a": 1}, names={"out": Path("out")}):
        Path("out").mkdir()
        Path("out/report.html").write_text("<p>")
        run_id = str(tracking.active_run())
    client = store.connect()
    assert client.get_run(run_id).info.status == "FINISHED"
    assert store.download(client, f"runs:/{run_id}/out", Path.cwd() / "got").joinpath("report.html").is_file()


@pytest.mark.parametrize("half", ["DROP TABLE runs", "DROP TABLE metrics"])
def test_a_half_made_store_names_the_file_to_delete(folder: Path, made: Made, half: str) -> None:
    """As older commands left it: tables are missing, and their versions are not written down."""
    (folder / "mlflow.db").write_bytes(made.content)
    with sqlite3.connect("mlflow.db") as database:
        database.executescript(f"PRAGMA foreign_keys = OFF; {half}; DROP TABLE alembic_version;")
    with pytest.raises(UserError, match=f"half made and holds no run.*; delete {folder}/mlflow.db, and run the same"):
        store.connect()


def test_an_empty_file_and_an_old_journal_are_no_store(folder: Path) -> None:
    """A full disk leaves the first; rolled back into a new store, the second would ruin it."""
    (folder / "mlflow.db").touch()
    (folder / "mlflow.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(1000))
    assert store.experiment(store.connect()) and not (folder / "mlflow.db-journal").exists()


def test_no_room_for_a_store_is_one_sentence(folder: Path) -> None:
    """On a disk of 64 KiB: what is free, and what to do; nothing is left that a later command finds."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode:
        pytest.skip("a small disk needs root, and the right to mount")
    try:
        os.chdir(folder)
        with pytest.raises(UserError, match=r"mlflow.db cannot be made \(.*full.* GiB free there\); mend it, or"):
            store.connect()
        assert not Path("mlflow.db").exists()
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("ffffffffffff", r"was written by a newer MLflow \(schema ffffffffffff\) than \d.*; install that one"),
        ("451aebb31d03", r"was written by an older MLflow than \d.*`mlflow db upgrade sqlite:///mlflow.db`"),
    ],
)
def test_another_schema_is_told_apart(folder: Path, made: Made, version: str, said: str) -> None:
    """MLflow calls both out of date; 451aebb31d03 is the first schema it ever had."""
    (folder / "mlflow.db").write_bytes(made.content)
    with sqlite3.connect("mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    with pytest.raises(UserError, match=said):
        store.connect()


def test_a_deleted_experiment_is_brought_back_by_the_command_that_is_named(
    folder: Path, made: Made, monkeypatch
) -> None:
    """The sentence's own command, read as a shell reads it."""
    from mlflow.cli import cli

    (folder / "mlflow.db").write_bytes(made.content)
    client = store.connect()
    client.delete_experiment(store.experiment(client))
    with pytest.raises(UserError, match="experiment un2clip was deleted") as refused:
        store.connect()
    variable, mlflow, *words = shlex.split(str(refused.value).partition("bring it back: ")[2])
    monkeypatch.setenv(*variable.split("=", 1))
    assert mlflow == "mlflow" and CliRunner().invoke(cli, words).exit_code == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store.experiment(store.connect())


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("localhost:5000", "has no http:// or https:// before it; set it to http://localhost:5000"),
        ("mlflow.example.org:80/team", "set it to http://mlflow.example.org:80/team"),
        ("http://localhost:5000/#/experiments/1", "set it to http://localhost:5000$"),
        ("https://me:secret@host/mlflow/#/experiments/1?orderBy=x", r"set it to https://\*\*\*@host/mlflow$"),
        ("http://localhost:5000/?workspace=a#/models", "set it to http://localhost:5000$"),
        ("http://[::1", "is no address; set it to one such as http://localhost:5000"),
    ],
)
def test_an_address_that_is_none_names_the_one_to_set(folder: Path, monkeypatch, uri: str, said: str) -> None:
    """Without a request: at once, and without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"^MLFLOW_TRACKING_URI .*{said}") as refused:
        store.connect()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["http://localhost:5000", "https://host/mlflow/", "sqlite:///a.db", "databricks://p", "x"]
)
def test_an_address_that_is_one_passes(uri: str) -> None:
    refusals.check_address(uri)
