"""Tars at s3:// addresses: what lies there, whether it changed, and a copy of one at a time where `ingest` works.

A path keeps such an address with a slash less (`s3:/bucket/folder`), since Path drops the second. Keys and endpoint are
in the environment, by the names that Amazon's own tools read (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
"""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from un2clip.errors import REFUSALS, StoreRefused, UserError, cause

_SCHEME = "s3:/"  # as a path has it
#: Bytes of a tar that are asked for at once; s3fs holds ten such pieces in memory.
_PIECE = 1 << 24
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Ended(Exception):
    """A copy is not wanted any more."""


def is_remote(path: Path) -> bool:
    """Whether the path is an s3:// address."""
    return path.as_posix().startswith(_SCHEME)


def address(path: Path) -> str:
    """The path as a user writes it, `s3://bucket/folder` where it is remote."""
    text = path.as_posix()
    return f"s3://{text.removeprefix(_SCHEME)}" if is_remote(path) else text


def entries(folder: Path) -> dict[Path, int | None]:
    """What lies in a folder of a bucket: path -> bytes, None for a folder; nothing for no such folder.

    Raises:
        StoreRefused: there is no such bucket, or the store does not let us in.
    """
    with _in_words(folder):
        bucket = Path(*folder.parts[:2])
        try:
            found = _store().ls(address(folder), detail=True)
        except FileNotFoundError:
            if not _store().exists(address(bucket)):
                raise
            return {}
        sizes = {Path(_SCHEME, each["name"]): None if each["type"] == "directory" else each["size"] for each in found}
        return {path: size for path, size in sizes.items() if path != folder}  # a folder's own mark


def stamp(tar: Path) -> tuple[int, int]:
    """Size, and a number of what the store says of its content (ETag); another tar of the name has another.

    Raises:
        StoreRefused: it is not there, or the store does not let us in.
    """
    with _in_words(tar):
        found = _store().info(address(tar))
        said = f"{found.get('ETag')} {found.get('LastModified')}"
        return found["size"], int(hashlib.sha256(said.encode()).hexdigest()[:15], 16)


def read(path: Path) -> bytes:
    """The content of a small file.

    Raises:
        StoreRefused: it is not there, or the store does not let us in.
    """
    with _in_words(path):
        content: bytes = _store().cat_file(address(path))
        return content


def fetch(tar: Path, to: Path, end: Event | None = None) -> None:
    """Copy a tar to a file; a part of it may be there after an error.

    Args:
        end: whether it is not wanted any more.

    Raises:
        StoreRefused: it is not there, the store does not let us in, or it breaks off.
        Ended: it is not wanted any more.
        OSError: the disk is full.
    """
    from fsspec import Callback

    class Watch(Callback):
        def relative_update(self, inc: int = 1) -> None:
            if end is not None and end.is_set():
                raise Ended

    with _in_words(tar):
        _store().get_file(address(tar), str(to), callback=Watch(), chunksize=_PIECE)


@functools.cache
def _store() -> Any:
    try:
        import s3fs
    except ImportError:
        raise UserError("an s3:// address needs s3fs, which is not installed: pip install 'un2clip[s3]'") from None
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What a store says no with, as one sentence; s3fs names the cause by a class, and by no number of the system."""
    try:
        yield
    except (UserError, Ended):
        raise
    except FileNotFoundError as error:
        raise StoreRefused(
            f"{address(path)} is not there ({cause(error)}); name another, or look at the bucket"
        ) from None
    except PermissionError as error:
        raise StoreRefused(f"{address(path)}: the store refuses it ({cause(error)}); look at {_KEYS}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise  # of the disk to which is copied
        if type(error).__name__ == "NoCredentialsError":
            raise StoreRefused(f"{address(path)}: no keys are given; set {_KEYS}") from None
        raise StoreRefused(
            f"{address(path)}: the store does not answer ({cause(error)}); look at AWS_ENDPOINT_URL, "
            "then the same command goes on"
        ) from None
