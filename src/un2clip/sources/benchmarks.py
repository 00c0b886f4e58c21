"""Get a benchmark's data set: from the hub, or from a folder that the user has; checked, locked, pointed to by DVC.

A hash that nobody has published cannot be checked the first time. So the first fetch trusts the hub, says so, and
writes the commit and the SHA-256 of every file into NAME.lock.yaml beside the folder: commit that file, and every
later fetch, anywhere, must bring the same bytes.
"""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from un2clip.config import build, read_yaml
from un2clip.errors import UserError
from un2clip.files.outputs import replaced
from un2clip.sources.catalogue import Entry, about_revision, check, describe, get_entry
from un2clip.sources.hub import Source, obtain, pin, verify


def fetch(name: str, *, to: Path, given: Path | None, revision: str) -> None:
    """Print licence and terms, then put the data set into `to` and point DVC to it.

    What is there already is only checked. An interrupted download goes on where it stopped.

    Args:
        name: an entry of the catalogue.
        to: the data set's folder; appears when it is complete.
        given: a folder that has it; None: from the hub.
        revision: branch, tag or commit of a hub id for the first fetch; "": the lock's, or else the catalogue's.

    Raises:
        UserError: unknown, not to be had without the user's help, incomplete, or not what was locked.
    """
    entry = get_entry(name)
    print(describe(entry), flush=True)
    lock = to.with_name(f"{to.name}.lock.yaml")
    source = build(Source, read_yaml(lock), lock.name) if lock.is_file() else None
    folder = to if to.exists() else given
    if folder is None:
        source = _source(entry, source, revision, lock)
        print(about_revision(entry, source.revision), flush=True)
        folder = obtain(source, kind="dataset", files=entry.layout.fetched, name=name)
    elif source is not None:
        verify(folder, source.sha256, name)
        print(f"every file is what {lock} says")
    print(check(entry, folder))
    if folder != to:
        _copy(folder, to)
    if source is not None and not lock.is_file():
        lock.write_text(yaml.safe_dump(dataclasses.asdict(source), sort_keys=False))
        print(
            f"{lock} is new: these {len(source.sha256)} hashes are what the hub said today, and nobody has vouched "
            "for them. Commit it, and every later fetch must bring the same bytes."
        )
    _point(to)
    print(f"{to} is ready; its benchmark is {to.name}, in the folder --benchmarks={to.parent}")


def _source(entry: Entry, locked: Source | None, revision: str, lock: Path) -> Source:
    """What to get from the hub, every file with its hash."""
    if entry.kind != "hub":
        why = "needs an account" if entry.kind == "login" else "is not on the hub"
        raise UserError(
            f"{entry.name} {why}: get it at {entry.page}, lay it out as above, and run "
            f"`un2clip fetch {entry.name} --from=FOLDER`"
        )
    if locked is not None:
        if revision not in ("", locked.revision):
            raise UserError(f"{lock} has revision {locked.revision}, not {revision}; to trust another one, delete it")
        return locked
    if not (revision or entry.revision):
        raise UserError(
            f"no revision of {entry.location} is known to us, and none is guessed: choose one at "
            f"{entry.page}/commits/main and give --revision=COMMIT; its files will be trusted and locked"
        )
    return pin(entry.location, revision or entry.revision, "dataset", entry.layout.fetched)


def _copy(folder: Path, to: Path) -> None:
    """Copy a folder's files under another name, and rename when all are there."""
    if to.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--to={to} lies inside --from={folder}, which cannot be copied into itself")
    with replaced(to) as partial, tqdm(desc=f"copy to {to}", unit="file", mininterval=1) as progress:
        shutil.copytree(folder, partial, copy_function=_counting(progress), dirs_exist_ok=True)


def _counting(progress: Any) -> Callable[[str, str], None]:
    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)  # contents alone: what the hub's cache protects is the user's here
        progress.update()

    return copy


def _point(to: Path) -> None:
    """`dvc add` where the folder is in a DVC repository and DVC is installed."""
    root = next((parent for parent in to.resolve().parents if (parent / ".dvc").is_dir()), None)
    if root is None:
        return
    if importlib.util.find_spec("dvc") is None:
        print(f"{to} has no DVC pointer, because dvc is not installed; later: dvc add {to}")
        return
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(to.resolve())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{to} is complete, but `dvc add {to}` failed: {reason}")
    print(f"{to}.dvc points to it; `dvc push` stores it")
