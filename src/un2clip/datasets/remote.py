"""Tars at s3:// addresses: what lies there, whether it changed, and a copy of one at a time where `ingest` works.

A path keeps such an address with a slash less (`s3:/bucket/folder`), since Path drops the second. Keys and endpoint are
in the environment, by the names that Amazon's own tools read (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
"""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from un2clip.errors import REFUSALS, UserError, cause

_SCHEME = "s3:/"  # as a path has it
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def is_remote(path: Path) -> bool:
    """Whether the path is an s3:// address."""
    return path.as_posix().startswith(_SCHEME)


def address(path: Path) -> str:
    """The path as a user writes it, `s3://bucket/folder` where it is remote."""
    text = path.as_posix()
    return f"s3://{text.removeprefix(_SCHEME)}" if is_remote(path) else text


def entries(folder: Path) -> dict[Path, bool]:
    """What lies in a folder of a bucket, by path, and whether it is a folder itself; nothing for no such folder.

    Raises:
        UserError: there is no such bucket, or the store does not let us in.
    """
    with _in_words(folder):
        bucket = Path(*folder.parts[:2])
        try:
            found = _store().ls(address(folder), detail=True)
        except FileNotFoundError:
            if not _store().exists(address(bucket)):
                raise
            return {}
        paths = {Path(_SCHEME, each["name"]): each["type"] == "directory" for each in found}
        return {path: is_folder for path, is_folder in paths.items() if path != folder}  # a folder's own mark


def stamp(tar: Path) -> tuple[int, int]:
    """Size, and a number of what the store says of its content (ETag); another tar of the name has another.

    Raises:
        UserError: it is not there, or the store does not let us in.
    """
    with _in_words(tar):
        found = _store().info(address(tar))
        said = f"{found.get('ETag')} {found.get('LastModified')}"
        return found["size"], int(hashlib.sha256(said.encode()).hexdigest()[:15], 16)


def fetch(tar: Path, to: Path) -> None:
    """Copy a tar to a file; a part of it may be there after an error.

    Raises:
        UserError: it is not there, the store does not let us in, or it breaks off.
        OSError: the disk is full.
    """
    with _in_words(tar):
        _store().get_file(address(tar), str(to))


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
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{address(path)} is not there ({cause(error)}); name another, or look at the bucket") from None
    except PermissionError as error:
        raise UserError(f"{address(path)}: the store refuses it ({cause(error)}); look at {_KEYS}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise  # of the disk to which is copied
        if type(error).__name__ == "NoCredentialsError":
            raise UserError(f"{address(path)}: no keys are given; set {_KEYS}") from None
        raise UserError(
            f"{address(path)}: the store does not answer ({cause(error)}); look at AWS_ENDPOINT_URL, "
            "then the same command goes on"
        ) from None
