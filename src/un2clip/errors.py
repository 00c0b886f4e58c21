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

LETTERS = 200  # of a cause: a library's message may repeat the whole file that it did not like


class UserError(ValueError):
    """Something the user can mend. The command line prints its message alone, without a traceback.

    The message is fit to be shown, whatever names are in it: each argument is one line, control characters are
    escaped, and secrets in addresses are hidden.
    """

    def __str__(self) -> str:
        return "\n".join(shown(str(line)) for line in self.args)


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


class StoreRefused(DiskRefused):
    """A bucket is not there, is closed to this user, does not answer, or holds something else."""


class Terminated(SystemExit):
    """SIGTERM, as an exception; nobody's `except Exception` catches it. Uncaught it ends with the shell's status."""

    def __init__(self, signal: int) -> None:
        super().__init__(128 + signal)


def reason(error: BaseException) -> str:
    """The error that began it, in one line: behind a refused connection MLflow stacks four."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {cause(error)}"


def cause(error: object) -> str:
    """An error's message in one line of at most LETTERS letters, fit to be shown."""
    text = " ".join(str(error).split())
    return shown(text if len(text) <= LETTERS else text[: LETTERS - 3] + "...")


def shown(text: str) -> str:
    """The text as it may be printed: what is not printable is escaped, secrets in addresses are hidden.

    Names come from tars, tables and other people's folders. A terminal obeys the control characters in them, and a
    name that is not UTF-8 cannot be printed at all.
    """
    text = re.sub(r"\bs3:/(?=[^/])", "s3://", without_password(text))  # a Path leaves a slash out
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def raise_stop(error: BaseException | None) -> None:
    """Raise the stop that is behind an error, if one is: SQLAlchemy, interrupted, may raise an error of its own."""
    while error is not None:
        if isinstance(error, Terminated | KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


def without_password(text: str) -> str:
    """The text with the user and password of every address in it hidden, and the values of every query (`?token=`)."""
    text = re.sub(r"//(\S*)@", _without_user, text)
    return re.sub(r"([?&][\w.~%+-]+=)[^&#\s'\"<>]+", r"\1***", text)


def _without_user(match: re.Match[str]) -> str:
    """Up to the last @ of the word: who types a password into an address does not quote its @ and /."""
    authority = re.split(r"[/?#]", match[1])[0]
    host_and_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority)
    if "@" not in authority and authority != match[1] and host_and_port:
        return match[0]  # an @ in the path of an address without a user
    return "//***@"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


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
        path = path or min(map(nearest_folder, [Path(tempfile.gettempdir()), *folders]), key=free_bytes)
        what, out = REFUSALS[number]
        room = f" ({free_bytes(path) / GIB:.3f} GiB free{f', {wanted / GIB:.3f} wanted' if wanted else ''})"
        room = room if number in FULL else ""
        raise DiskRefused(
            f"{path}: {what.format(user=os.getuid())}{room}; {out}, then the same command goes on"
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


def nearest_folder(path: Path) -> Path:
    """The path where it is a folder, or the nearest one above it that there is."""
    return next(each for each in [path, *path.absolute().parents] if os.path.isdir(each))


def free_bytes(path: Path) -> int:
    """Room on the disk of a path, which need not be there yet."""
    return shutil.disk_usage(nearest_folder(path)).free
