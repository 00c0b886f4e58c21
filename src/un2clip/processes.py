"""Which process this is, whether another one is gone, and how one is asked to stop.

A lock, and the record of a run that was left open, name the process that made them. Whether it is gone is said only
where it can be proved: on the same boot of the same machine, in the same namespace of process numbers.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import FrameType

from un2clip.errors import Terminated

BOOT = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = "-"  # of a system that does not tell
FIELDS_BEFORE_START = 19  # in /proc/PID/stat, behind the name in brackets (proc(5): the start is field 22)


@dataclass(frozen=True)
class Process:
    """A process as nothing else is, past and future.

    Attributes:
        host: the machine's name, or the container's.
        boot: id of the machine's boot.
        namespace: in which the number counts; a container has its own.
        pid: its number.
        start: when it began, in clock ticks since the boot; numbers are given again.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: str

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))

    @property
    def place(self) -> str:
        """Where its number counts: the beginning of its text."""
        return f"{self.host} {self.boot} {self.namespace} "

    @property
    def gone(self) -> bool:
        """Whether it is proved that it runs no more; False also where this cannot be known from here."""
        if self.place != here().place or UNKNOWN in (self.boot, self.namespace, self.start):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's, who may hide when it began
            return False
        return _start(self.pid) not in (self.start, UNKNOWN)


def parse(text: str) -> Process | None:
    """The process that such a text names; None where it is none."""
    parts = text.split(" ")
    if len(parts) != 5 or not parts[3].isdecimal():
        return None
    return Process(parts[0], parts[1], parts[2], int(parts[3]), parts[4])


def here() -> Process:
    """This process."""
    try:
        boot, namespace = BOOT.read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = UNKNOWN
    return Process(socket.gethostname(), boot, namespace, os.getpid(), _start(os.getpid()))


def _start(pid: int) -> str:
    """When a process began; "gone" for one that has ended and only waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone"
    except OSError:
        return UNKNOWN
    return "gone" if fields[0] in "ZX" else fields[FIELDS_BEFORE_START]


@contextmanager
def deferring() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait until the end: for seconds in which a library would lose the exception.

    Handlers are exchanged, not the mask: a signal to the process would go to another thread, and act all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def terminable() -> Iterator[None]:
    """While it is open, the first SIGTERM raises Terminated in the main thread; a second one acts as it did before.

    What stands in a `finally` is done then, and whoever records how this ended can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before)
        raise Terminated(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
