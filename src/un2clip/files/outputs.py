"""What is written for others: files with the permissions that any new file has, folders that appear whole."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from un2clip.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(tensors: "Mapping[str, Tensor]", path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file of safetensors; the same tensors give the same bytes."""
    from safetensors.torch import save_file  # here, since the download image has none

    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    permit(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all, into a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


@contextmanager
def only_one(file: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Let one process at a time in. The lock is the system's, so it ends with its holder, however that ends.

    A disk without locks keeps nobody out; two commands at once are rare there.

    Args:
        file: what is locked; it is made where it is not there.
        busy: said where another process is in: as the error, or before waiting for it.
        wait: until the other one is out.

    Raises:
        UserError: another process is in, and `wait` is False.
    """
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(busy) from None
            print(f"un2clip: {busy}", file=sys.stderr)
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def permit(path: Path) -> None:
    """Give a file of safetensors, or all of them below a folder, the permissions that any new file has here.

    Their library makes them for their owner alone, whatever the umask says: nobody else of a team, and no container of
    another user, can read them.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    for file in [path] if path.is_file() else path.rglob("*.safetensors"):
        if not file.is_symlink():
            file.chmod(0o666 & ~mask)


def is_empty(folder: Path) -> bool:
    """Whether nothing is there: no folder, or one without files."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which it replaces at the end; after an error nothing has changed.

    A folder that is a link to another disk stays one: what is new is made, and replaced, where it leads.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    put(partial, folder)


def put(made: Path, folder: Path) -> None:
    """Move a finished folder to where another may be, which is deleted once it is replaced."""
    older = folder.with_name(f".{folder.name}.older")
    shutil.rmtree(older, ignore_errors=True)  # of a call that was killed while it deleted it
    if folder.exists():
        folder.rename(older)
    made.rename(folder)
    shutil.rmtree(older, ignore_errors=True)
