"""SHA-256 of files: what is pinned, locked, or written with a score."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hash of one file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
