"""One training at a time on one checkpoints folder: a file beside it, which its holder renews while it lives.

The file names the holder's process. Whoever finds it takes it where that process is proved to be gone, or where nobody
has renewed it for a minute; where neither is known yet, it watches: a holder that lives renews within that time.
Ages are differences of the disk's own clock, so machines need not agree on the time.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from un2clip import processes
from un2clip.errors import Stopped, UserError
from un2clip.files.texts import parse_json, read_text

RENEWED_S = 10.0  # seconds between two renewals
STALE_S = 60.0  # seconds; six renewals that did not come
LOOK_S = 0.5  # seconds between two looks of one who waits


class Lock:
    """A lock that this process holds.

    Attributes:
        path: its file.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self._text, self._done = path, text, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="un2clip lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Called before anything is written under the lock.

        Raises:
            Stopped: another process has taken it, for this one stood still too long to renew it.
        """
        if _read(self.path) != self._text:
            raise Stopped(
                f"another training has taken over {self.path.with_suffix('')}: this one had not renewed {self.path} "
                f"for {STALE_S:.0f} s, as after a machine's sleep, and leaves it to the other; once that has ended",
                signal=None,
            )

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if _read(self.path) == self._text:
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._done.wait(RENEWED_S):
            try:
                if _read(self.path) == self._text:
                    os.utime(self.path)
            except OSError:
                pass  # the next renewal is soon


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold the lock of a folder: `folder.lock`, beside it. The folder itself need not exist.

    Raises:
        UserError: another training holds it; names its process, and where it runs.
    """
    path = folder.with_name(f"{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"process": str(processes.here()), "began": time.strftime("%Y-%m-%d %H:%M:%S %z")})
    while True:
        try:
            file = path.open("x")  # of two that try, one succeeds, on network disks too
        except FileExistsError:
            _clear(path)
            continue
        try:
            with file:
                file.write(text)
            break
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise
    lock = Lock(path, text)
    try:
        yield lock
    finally:
        lock.release()


def _clear(path: Path) -> None:
    """Remove a lock that nobody holds; wait where that is not known yet.

    Raises:
        UserError: somebody holds it.
    """
    text, seen = _read(path), _mtime(path)
    content = _parsed(text)
    holder = processes.parse(content.get("process", ""))
    mine = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns():x}")
    said = False
    try:
        while holder is None or not holder.gone:
            mine.touch()  # whose time is the disk's own
            if seen is None or _read(path) != text:
                return  # it was given back, or taken by somebody who is looked at in the next turn
            if (_mtime(mine) or seen) - seen >= STALE_S:
                break
            if _mtime(path) not in (seen, None) or (holder and holder.place == processes.here().place):
                raise _held(path, holder, content)
            if not said:
                print(
                    f"un2clip: {path} is watched for up to {STALE_S:.0f} s: does {_who(holder)} live?", file=sys.stderr
                )
            said = True
            time.sleep(LOOK_S)
        print(f"un2clip: {_who(holder)} is gone; its lock {path} is taken over", file=sys.stderr)
        path.replace(mine)  # of two that take it over, one succeeds
        if _read(mine) != text:  # another had become its holder since the look
            mine.replace(path)
    except FileNotFoundError:
        return
    finally:
        mine.unlink(missing_ok=True)


def _held(path: Path, holder: processes.Process | None, content: dict[str, str]) -> UserError:
    folder = path.with_suffix("")
    return UserError(
        f"another training uses {folder}: {_who(holder)}, since {content.get('began', 'an unknown time')}; wait for "
        "it or stop it, or set checkpoints to another folder"
    )


def _who(holder: processes.Process | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "an unknown process"


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except UserError:
        return ""


def _parsed(text: str) -> dict[str, str]:
    try:
        content = parse_json(text, "a lock")
    except UserError:
        return {}
    return {key: str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
