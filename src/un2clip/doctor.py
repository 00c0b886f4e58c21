"""What this machine has for un2clip, and what it lacks: `un2clip doctor`.

Each check is one line: ok, warn (some of it will not work) or FAIL (nothing will), with the mending beside it.
Nothing here imports torch unless it is asked for GPUs, so that a container's health check stays quick.
"""

import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from un2clip.errors import GIB, free_bytes, nearest_folder

NEEDED = ("torch", "torchvision", "open_clip_torch", "diffusers", "transformers", "mlflow")
OPTIONAL = ("kfp", "dvc")
MEMORY_GIB = 3.0  # `make demo` takes 2.2 in one process (docs/LOG.md)
SHARED_MEMORY_GIB = 1.0  # loader workers hand batches over through it; a container has 1/16 unless told otherwise
SPACE_GIB = 2.0  # `make demo` leaves 0.5 behind, and DVC's cache holds it once more
SERVICE_SECONDS = 5.0
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        state: ok; warn: some of un2clip will not work; FAIL: what it is needed for cannot work.
        message: what was found.
        fix: what to do about it; empty where all is well.
    """

    name: str
    state: Literal["ok", "warn", "FAIL"]
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.name:<20}  {self.message}" + (f"; {self.fix}" if self.fix else "")


def examine(*, torch: bool = True) -> Iterator[Check]:
    """Every check, in the order a person would ask.

    Args:
        torch: also ask torch for GPUs, which takes seconds.
    """
    yield python()
    yield from packages(NEEDED, state="FAIL")
    yield from packages(OPTIONAL, state="warn")
    yield from gpus(torch=torch)
    yield memory()
    yield shared_memory()
    for path in places():
        yield writable(path)
    yield space(Path.cwd(), SPACE_GIB)
    yield tool("git", needed=False)
    yield tool("dvc", needed=Path("dvc.yaml").is_file())
    if Path("dvc.yaml").is_file():
        yield repository(Path.cwd())
    for variable in ("MLFLOW_TRACKING_URI", "KFP_ENDPOINT", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(variable):
            yield service(variable, url)


def healthy(checks: Iterable[Check]) -> bool:
    """Whether nothing that is needed failed."""
    return all(check.state != "FAIL" for check in checks)


def python() -> Check:
    message = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", "ok", message)


def packages(names: Iterable[str], *, state: Literal["warn", "FAIL"]) -> Iterator[Check]:
    """A line for those that are installed, and one in `state` for those that are not."""
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if found:
        yield Check("packages", "ok", ", ".join(found))
    if missing:
        yield Check("packages", state, f"{', '.join(missing)} not installed", "run `make setup`")


def gpus(*, torch: bool) -> Iterator[Check]:
    """What the driver sees; with `torch` also whether torch can use it."""
    found = _nvidia_smi()
    for each in found or ["none; everything computes on the processor"]:
        yield Check("gpu", "ok", each)
    if found and torch:
        from torch import __version__, cuda, version

        if cuda.is_available():
            yield Check("torch and gpu", "ok", f"torch {__version__} computes on {cuda.device_count()} of them")
        else:
            built = f"CUDA {version.cuda}" if version.cuda else "no CUDA"
            fix = "update the driver, or install a torch that fits it; until then set device to cpu"
            yield Check("torch and gpu", "warn", f"torch {__version__}, built for {built}, cannot use them", fix)


def _nvidia_smi() -> list[str]:
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        shown = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in shown.stdout.splitlines() if line.count(", ") == 2)
    return [f"{name}, {size}, driver {driver}" for name, size, driver in rows]


def memory() -> Check:
    """Memory of the machine, or of the container where that is less."""
    machine = psutil.virtual_memory()
    limit = min([int(text) for text in _limits() if text.isdecimal()] + [machine.total])
    more = "the container's limit" if limit < machine.total else f"{machine.available / GIB:.1f} available"
    message = f"{limit / GIB:.1f} GiB, {more}"
    if limit < MEMORY_GIB * GIB:
        return Check("memory", "warn", message, f"the laptop run wants {MEMORY_GIB:g}: raise it, or lower batch sizes")
    return Check("memory", "ok", message)


def _limits() -> list[str]:
    return [path.read_text().strip() for path in CGROUP_LIMITS if path.is_file()]


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    if not path.is_dir():
        return Check("shared memory", "warn", f"no {path}", "set every `workers` of params.yaml to 0")
    size = shutil.disk_usage(path).total / GIB
    if size < SHARED_MEMORY_GIB:
        fix = "with loader workers: `docker run --shm-size=2g`, in a pod an emptyDir of medium Memory"
        return Check("shared memory", "warn", f"{path} has {size:.2f} GiB", fix)
    return Check("shared memory", "ok", f"{path} has {size:.1f} GiB")


def places() -> list[Path]:
    """Folders that are written: the current one, the temporary one, the hub's cache."""
    home = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    return [Path.cwd(), Path(tempfile.gettempdir()), Path(home).expanduser()]


def writable(path: Path) -> Check:
    """Whether a file can be made in a folder, or in the nearest one above it that exists."""
    folder = nearest_folder(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = f"give user {os.getuid()} the right to write, or work somewhere else"
        return Check("writable", "FAIL", f"{path}: {error.strerror}", fix)
    return Check("writable", "ok", str(path))


def space(path: Path, gib: float) -> Check:
    """Whether the disk that holds a path (or would) has so many GiB free."""
    free = free_bytes(path) / GIB
    message = f"{free:.1f} GiB free at {path}"
    if free < gib:
        return Check("space", "FAIL", message, f"{gib:g} GiB are needed: delete, or work on another disk")
    return Check("space", "ok", message)


def tool(name: str, *, needed: bool) -> Check:
    """Whether a command is on PATH, or beside the interpreter that runs this."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if found := shutil.which(name, path=beside):
        return Check(name, "ok", found)
    return Check(name, "FAIL" if needed else "warn", "not found", "install it, or put it on PATH")


def repository(folder: Path) -> Check:
    """Whether DVC finds the Git repository that it wants; a ZIP of the project has none."""
    config = folder / ".dvc/config"
    if any((each / ".git").exists() for each in (folder, *folder.parents)):
        return Check("repository", "ok", str(folder))
    if config.is_file() and re.search(r"^\s*no_scm\s*=\s*true", config.read_text(), re.MULTILINE):
        return Check("repository", "ok", f"{folder}, without Git, as {config} says")
    fix = "`git init`, for `make demo`; and for `dvc exp run` also `git add . && git commit -m start`"
    return Check("repository", "FAIL", f"no .git in {folder}, as in a ZIP of the project", fix)


def service(name: str, url: str) -> Check:
    """Whether something answers at an address; any answer that is not a server's error is one.

    Args:
        name: the variable or the service, for the reader.
        url: http or https: asked once, without credentials. sqlite: its folder is looked at. Others are not tried.
    """
    shown = re.sub("//.*@", "//***@", url.partition("?")[0])
    fix = f"start it, or mend or unset {name}"
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "sqlite":
            check = writable(Path(parts.path.removeprefix("/")).parent)
            return Check(name, check.state, f"{shown}: folder {check.message}", check.fix)
        if parts.scheme not in ("http", "https"):
            return Check(name, "ok", f"{shown}: not an address that can be asked")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with urllib.request.urlopen(bare, timeout=SERVICE_SECONDS):
            return Check(name, "ok", f"{shown} answers")
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return Check(name, "ok", f"{shown} answers ({error.code} {error.reason})")
        return Check(name, "FAIL", f"{shown} answers {error.code} {error.reason}", fix)
    except OSError as error:  # a URLError is one
        return Check(name, "FAIL", f"{shown} does not answer ({getattr(error, 'reason', error)})", fix)
    except (ValueError, http.client.HTTPException):  # whose messages may hold what is not to be shown
        return Check(name, "FAIL", f"{shown} is no address, or what answers is no web server", fix)
