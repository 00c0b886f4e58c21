"""Tasks for the workers of tests: a module that imports little, since each worker imports it."""

import os
import signal
import time
from pathlib import Path

import torch
from tqdm import tqdm

from un2clip.datasets.parts import Part, check_tar
from un2clip.errors import UserError


def write(path: Path) -> None:
    """The later a name, the sooner it is done. It says which worker it was, and its threads."""
    time.sleep(0.3 if path.name == "a" else 0)
    path.write_text(f"{os.getpid()} {os.environ.get('LOCAL_WORLD_SIZE')} {torch.get_num_threads()}")


def tell(path: Path) -> None:
    """What the caller's variable is here."""
    path.write_text(os.environ.get("UN2CLIP_TOLD", "nothing"))


def die_once(path: Path) -> None:
    """The first call for "b" is killed as by the system when memory is short."""
    if path.name == "b" and not path.with_suffix(".tried").exists():
        path.with_suffix(".tried").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text("done")


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(path: Path) -> None:
    raise UserError(f"{path.name} cannot be read")


def draw_bar(path: Path) -> None:
    """A bar has a lock between processes, a semaphore that its process takes away when it ends."""
    path.write_text(str(sum(tqdm(range(3), disable=True))))


def wait_long(path: Path) -> None:
    path.with_suffix(".partial").write_text(str(os.getpid()))
    path.with_suffix(".partial").rename(path)
    time.sleep(300)


def check_and_die_once(part: Part) -> None:
    """The first worker that is done with the first tar dies before it can say so."""
    died = part.folder / "died"
    check_tar(part)
    if part.tar.name == "0.tar" and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
