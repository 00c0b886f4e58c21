"""Output folders that appear whole or not at all: what a killed stage leaves, no later one reads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from un2clip.hashes import folder_sha256


def is_empty(folder: Path) -> bool:
    """Whether nothing is there: no folder, or one without files."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def same_content(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    return one.is_dir() and other.is_dir() and folder_sha256(one) == folder_sha256(other)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which it replaces at the end; after an error nothing has changed.

    What an earlier call left when it was killed is removed. A folder that is a link stays one.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    partial, older = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "older"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if folder.exists():
        shutil.rmtree(older, ignore_errors=True)
        folder.rename(older)
    partial.rename(folder)
    shutil.rmtree(older, ignore_errors=True)
