"""SHA-256 of files and tensors: what is pinned, locked, or written with a score."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def file_sha256(path: Path) -> str:
    """Hash of one file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256_once(path: Path) -> str:
    """The same, but a file that has not changed since (size, time) is read once a process."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def folder_sha256(folder: Path) -> str:
    """Hash of all files below a folder but hidden ones, names and contents, in order of name."""
    digest = hashlib.sha256()
    for path in files_below(folder):
        digest.update(f"{path.relative_to(folder)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """The files that a folder's data consist of, in order of name: all below it that are not hidden."""
    found = (path for path in folder.rglob("*") if not is_hidden(path.relative_to(folder)) and path.is_file())
    return sorted(found)


def is_hidden(path: str | PurePath) -> bool:
    """Whether a name, or that of a folder on the way, begins with a dot: what Finder, hub client and editors leave."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)


def tensors_sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash of names, shapes, dtypes and values, in order of name."""
    import torch  # here, since the download image has none

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
