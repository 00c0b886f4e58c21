"""Copies of a bucket's shards on this machine: of those that are read now, and of the next few.

A copy lies where the system keeps temporary files (TMPDIR), is named by its hash and was held against it. All processes
of a user on a machine share it: each that reads has a lock on it (flock), and who unlocks it last deletes it. So what a
killed process left has no lock, and the next call deletes it.
"""

import fcntl
import functools
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Protocol, TypeVar

from un2clip.datasets import remote
from un2clip.datasets.shards import Shard, check_shard
from un2clip.errors import StoreRefused, UserError, disks_in_words
from un2clip.hashes import file_sha256


class _OfShard(Protocol):
    """An index of a sample."""

    @property
    def shard(self) -> int: ...


Index = TypeVar("Index", bound=_OfShard)


def near(tar: Path, shard: Shard) -> Path:
    """A file of this machine with a shard's bytes: the shard itself, checked, or its copy, which somebody must hold."""
    if remote.is_remote(tar):
        return _path(shard)
    check_shard(tar, shard)
    return tar


@contextmanager
def held(tar: Path, shard: Shard) -> Iterator[Path]:
    """The same; where it is a copy, it is made, and held within."""
    if not remote.is_remote(tar):
        yield near(tar, shard)
        return
    file = _take(tar, shard, Event())
    try:
        yield _path(shard)
    finally:
        _let_go(file)


class Ahead:
    """Holds the copies that batches need which are read now, and makes those of the next shards meanwhile.

    Args:
        folder: of a bucket, the split's shards.
        listed: they, as the index lists them.
        shards: how many are copied ahead; 0: those of the next batch alone.
    """

    def __init__(self, folder: Path, listed: Sequence[Shard], shards: int) -> None:
        self._folder, self._listed = folder, listed
        # a data set without end has no more different shards than these
        self._wanted = min(shards + 1, sum(shard.samples > 0 for shard in listed))
        self._copies: dict[int, Future[IO[bytes]]] = {}
        self._coming = Counter[int]()  # shard -> batches of it that were looked at and not given yet
        self._given = deque[set[int]]()  # the shards of each batch that is being read
        self._end, self._thread = Event(), ThreadPoolExecutor(1)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.shutdown(cancel_futures=True)
        for copy in self._copies.values():
            if not copy.cancelled() and not copy.exception():
                _let_go(copy.result())

    def give(self, batches: Iterator[list[Index]]) -> Iterator[list[Index]]:
        """The same batches, each when its shards are near.

        Raises:
            StoreRefused: a shard is not there, is another, or the store does not answer.
            DiskRefused: there is no room for a copy.
        """
        waiting = deque[list[Index]]()

        def look_ahead() -> None:
            while len(self._coming) < self._wanted and (batch := next(batches, None)) is not None:
                waiting.append(batch)
                self._coming.update({index.shard for index in batch})
                for index in batch:
                    self._begin(index.shard)

        look_ahead()
        while waiting:
            batch = waiting.popleft()
            shards = {index.shard for index in batch}
            self._given.append(shards)
            self._coming -= Counter(shards)
            look_ahead()
            for shard in shards:
                self._copies[shard].result()
            yield batch

    def read(self) -> None:
        """Say that the first of the batches given has been read: what nothing else needs is deleted."""
        self._given.popleft()
        needed = self._coming.keys() | set().union(*self._given)
        for shard in self._copies.keys() - needed:
            _let_go(self._copies.pop(shard).result())

    def _begin(self, shard: int) -> None:
        if shard not in self._copies:
            listed = self._listed[shard]
            self._copies[shard] = self._thread.submit(_take, self._folder / listed.name, listed, self._end)


def _take(tar: Path, shard: Shard, end: Event) -> IO[bytes]:
    """The copy, made where there is none, open and locked."""
    path = _path(shard)
    with disks_in_words([path.parent], shard.bytes):
        while True:
            file = path.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_SH)  # waits while another process makes it
                if not _is_whole(path, shard):
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if _is_there(file) and not _is_whole(path, shard):
                        remote.fetch(tar, path, end)
                        _check(tar, shard, path)
                    fcntl.flock(file, fcntl.LOCK_SH)
                if _is_there(file):
                    return file
            except BaseException:
                _let_go(file)
                raise
            file.close()  # it was deleted after it was opened


def _check(tar: Path, shard: Shard, copy: Path) -> None:
    try:
        check_shard(tar, shard, copy)
    except UserError as error:
        raise StoreRefused(str(error)) from None


def _let_go(file: IO[bytes]) -> None:
    """Unlock a copy, and delete it where it was the last lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        if _is_there(file):
            file.truncate(0)  # a forked worker may have it open and keep its space
            os.unlink(file.name)
    fcntl.flock(file, fcntl.LOCK_UN)  # which a forked worker would keep too
    file.close()


def _is_there(file: IO[bytes]) -> bool:
    return os.fstat(file.fileno()).st_nlink > 0


def _is_whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def _path(shard: Shard) -> Path:
    return _folder(Path(tempfile.gettempdir())) / f"{shard.sha256}.tar"


@functools.cache
def _folder(temporary: Path) -> Path:
    """The folder of copies, this user's alone; what nobody holds there is deleted."""
    folder = temporary / f"un2clip-shards-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}, for copies of shards, is another user's; set TMPDIR to a folder of yours")
    for path in folder.glob("*.tar"):
        try:
            _let_go(path.open("r+b"))
        except FileNotFoundError:
            pass  # another process was quicker
    return folder
