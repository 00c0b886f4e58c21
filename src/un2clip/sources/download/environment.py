"""img2dataset's own environment: its pins (pandas<3, webdataset<0.3) and ours exclude each other."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from un2clip.errors import UserError
from un2clip.files.texts import read_text

LOCK = Path(__file__).with_name("img2dataset.lock")
_NEWEST_PYTHON = (3, 12)  # img2dataset 1.47.0 imports imghdr, which 3.13 has no more


def interpreter(environment: Path, distributor: str = "multiprocessing") -> Path:
    """The Python that has img2dataset: this one, where it is installed as is; else the environment's, made if need be.

    Args:
        environment: a virtual environment. What installed it says so in `img2dataset.lock.sha256` beneath it, so
            that one that was left half made, or that an older lock made, is brought up to date.
        distributor: of img2dataset; pyspark and ray are packages that its lock leaves out.

    Raises:
        UserError: this Python is too new, pip failed, or the distributor's package is not there.
    """
    python = _with_img2dataset(environment)
    if distributor != "multiprocessing":
        looked = subprocess.run([str(python), "-I", "-c", f"import {distributor}"], capture_output=True)
        if looked.returncode:
            raise UserError(
                f"download.distributor is {distributor}, which is not installed beside img2dataset: {python} -m pip "
                f"install {distributor}"
            )
    return python


def _with_img2dataset(environment: Path) -> Path:
    if importlib.util.find_spec("img2dataset"):
        return Path(sys.executable)
    python = environment / "bin" / "python"
    stamp, wanted = environment / "img2dataset.lock.sha256", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.is_file() or read_text(stamp).strip() != wanted:
        _install(environment, python)
        stamp.write_text(wanted + "\n")
    return python


def _install(environment: Path, python: Path) -> None:
    if sys.version_info[:2] > _NEWEST_PYTHON:
        running, newest = (".".join(map(str, version[:2])) for version in (sys.version_info, _NEWEST_PYTHON))
        raise UserError(f"img2dataset runs on Python {newest} at most, and this is {running}; use the download image")
    print(f"download: installing img2dataset into {environment} (once; a minute, 800 MB)", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    for command in ([sys.executable, "-m", "venv", str(environment)], [*pip, "-r", str(LOCK)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise UserError(f"cannot make {environment} for img2dataset: {reason[-1]}")
