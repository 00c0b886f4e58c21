"""The store in a file: made whole or not at all, and found in a folder of any name.

MLflow makes its tables one by one. So a store is made under another name, under a lock, and renamed when it is
complete: a command that is interrupted meanwhile leaves nothing that a later one could take for a store.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from un2clip.errors import GIB, UserError, free_bytes, raise_stop, reason
from un2clip.files.outputs import only_one
from un2clip.processes import deferring

NAME = "mlflow.db"
PREFIX = "sqlite:///"
#: What SQLite keeps beside a database while it is written.
BESIDE = ("-journal", "-wal", "-shm")
#: Letters that an address reads otherwise than a path.
ODD = frozenset("?#%")


def local_uri() -> str:
    """Address of mlflow.db in the current directory: in full, unless the directory's name would be read otherwise."""
    return f"{PREFIX}{NAME}" if odd_folder() else f"{PREFIX}{Path.cwd() / NAME}"


def odd_folder() -> bool:
    """Whether the current directory's name cannot stand in an address."""
    return not ODD.isdisjoint(str(Path.cwd()))


def artifacts(experiment: str = "") -> str | None:
    """Address of the artifacts of a store in a file; None where MLflow's own, a path, will do."""
    return (Path.cwd() / "mlruns" / experiment).as_uri() if odd_folder() else None


def file_of(uri: str) -> Path | None:
    """The file of a store that is one; None for a server's address, or one with options."""
    path = uri.removeprefix(PREFIX)
    return None if path in (uri, "", ":memory:") or "?" in path else Path(path)


def ensure(uri: str, experiment: str) -> None:
    """Make the store where its address names a file that is not there; see the module.

    Args:
        experiment: made in it, too.

    Raises:
        UserError: it cannot be made, such as on a full disk.
    """
    path = file_of(uri)
    if path is None or _is_there(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _beside(path, "lock")
        with only_one(lock, f"waiting for another command, which makes {path}", wait=True):
            try:
                if not _is_there(path):
                    with deferring():  # SQLAlchemy's destructors would swallow the exception of a signal
                        _make(path, experiment)
            finally:
                if _is_there(path):
                    lock.unlink(missing_ok=True)  # nobody will ask for it again
    except Exception as error:
        raise_stop(error)
        free = free_bytes(path.parent) / GIB
        raise UserError(
            f"{path} cannot be made ({reason(error)}; {free:.2f} GiB free there); mend it, or set "
            "MLFLOW_TRACKING_URI to another store, or UN2CLIP_TRACKING=off"
        ) from None


def half_made(path: Path) -> bool:
    """Whether a file is a store that was never finished: a database that has no run."""
    try:
        with sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return "runs" not in tables or not database.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.Error:
        return False


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _make(path: Path, experiment: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = _beside(path, "partial")
    for each in (path, partial):  # an older journal would be rolled back into the new file
        for leftover in (each, *(each.with_name(each.name + suffix) for suffix in BESIDE)):
            leftover.unlink(missing_ok=True)
    relative = os.path.relpath(partial) if odd_folder() else str(partial)
    with _unsynced():
        made = SqlAlchemyStore(f"{PREFIX}{relative}", artifacts() or "./mlruns")
        try:
            made.create_experiment(experiment, artifact_location=artifacts(experiment))
        finally:
            made.engine.dispose()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _unsynced() -> Iterator[None]:
    """SQLite waits for the disk after each of MLflow's hundred steps, 10 s on a busy one; once at the end is enough."""
    from sqlalchemy import Engine, event

    def hurry(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")
