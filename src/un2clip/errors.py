"""What goes wrong, in words: a mistake of the user, a stop that was asked for, a cause in one line."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

GIB = 2**30
#: What a disk says no with -> the same in words, and the way out.
REFUSALS = {
    errno.ENOSPC: ("no space is left", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room, or have it raised"),
    errno.EFBIG: ("a file may not be so large", "raise the limit (`ulimit -f`), or take another disk"),
    errno.EROFS: ("it is read-only", "name a folder that can be written"),
    errno.EACCES: ("user {user} has no permission", "give it, or name another folder"),
    errno.EPERM: ("user {user} has no permission", "give it, or name another folder"),
}
#: Those that are about a whole disk, whose free space is told.
FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """Something the user can mend. The command line prints its message alone, without a traceback."""


class Stopped(UserError):
    """A stage was asked to stop, and what it did so far is kept.

    Attributes:
        signal: the number of the signal that asked; None where something else did.
    """

    def __init__(self, message: str, signal: int | None = SIGTERM) -> None:
        super().__init__(message)
        self.signal = signal


class DiskRefused(UserError):
    """A disk is full, read-only or closed to this user; what was done before is kept."""


class Terminated(SystemExit):
    """SIGTERM, as an exception; nobody's `except Exception` catches it. Uncaught it ends with the shell's status."""

    def __init__(self, signal: int) -> None:
        super().__init__(128 + signal)


def reason(error: BaseException) -> str:
    """The error that began it, in one line: behind a refused connection MLflow stacks four."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {without_password(' '.join(str(error).split()))}"


def raise_stop(error: BaseException | None) -> None:
    """Raise the stop that is behind an error, if one is: SQLAlchemy, interrupted, may raise an error of its own."""
    while error is not None:
        if isinstance(error, Terminated | KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


def without_password(text: str) -> str:
    """The text, with the user and password of every address in it hidden."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)


@contextmanager
def disks_in_words(folders: Iterable[Path], wanted: int = 0) -> Iterator[None]:
    """Turn a disk's refusal within (full, read-only, no permission) into one sentence.

    Args:
        folders: where is written, for the error does not always say; of several the one with the least room is named.
        wanted: bytes that were to be written, where that is known.

    Raises:
        DiskRefused: the sentence. Every other error passes through unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, path = _refused(error)
        if number not in REFUSALS:
            raise
        path = path or min(map(_existing, [Path(tempfile.gettempdir()), *folders]), key=_free)
        what, out = REFUSALS[number]
        shown = f" ({_free(path) / GIB:.3f} GiB free{f', {wanted / GIB:.3f} wanted' if wanted else ''})"
        shown = shown if number in FULL else ""
        raise DiskRefused(
            f"{path}: {what.format(user=os.getuid())}{shown}; {out}, then the same command goes on"
        ) from None


def _refused(error: BaseException | None) -> tuple[int, Path | None]:
    """The system's number behind an error, and the path that it names; safetensors tells the number in its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return error.errno, Path(os.fsdecode(error.filename)) if error.filename else None
        if told := re.search(r"\(os error (\d+)\)", str(error)):
            return int(told[1]), None
        error = error.__cause__ or error.__context__
    return 0, None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that there is."""
    return next(each for each in [path, *path.absolute().parents] if os.path.exists(each))


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free
