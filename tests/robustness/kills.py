"""Stages that are killed, stopped, or run out of room at drawn moments, and the same command again.

    python -m tests.robustness.kills --trials 120 --seed 1

Each try runs a stage's own command at toy size, tracked, in a new folder: it is killed (kill -9) at a drawn file event
or at a drawn time, stopped by SIGTERM or Ctrl-C at a drawn time, or may write no file above a drawn size (as on a full
disk). Then the same command runs again, without harm. Printed is the number of tries by stage and harm, and what went
wrong; the status is 1 where anything is not as it must be:

- the second command ends well, and its outputs have the bytes of an unbroken run;
- nothing prints a traceback; a limit ends with status 2, a signal with 128 + its number;
- no run in MLflow stays open.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.pipeline import ROOT, STAGES, make, names
from un2clip.hashes import file_sha256

HARMS = ("event", "time", "SIGTERM", "SIGINT", "limit")
#: What the audit hooks of Python report when files are made, moved or removed.
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
#: Names a registered version and a run, which are the store's.
NOT_COMPARED = ("registry.json",)
LONGEST_S = 300


@dataclass
class Command:
    """One stage's command, and what an unbroken run of it did.

    Attributes:
        events: file events.
        seconds: that it took.
        largest: bytes of its largest output.
        files: path below its folder -> hash.
    """

    stage: str
    base: Path
    events: int = 0
    seconds: float = 0.0
    largest: int = 0
    files: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Its command line, in a folder where its outputs go to `out`."""
        numbers = [f"--params={ROOT / 'params.yaml'}", f"--overlay={ROOT / 'tests/e2e/tiny.yaml'}"]
        given = names(self.stage, self.base, Path("out"))
        if self.stage in ("compare", "promote"):
            given["scores"] = [given["scores"]] if not isinstance(given["scores"], list) else given["scores"]
        flat = [(key, each) for key, value in given.items() for each in (value if isinstance(value, list) else [value])]
        return [self.stage, *numbers, *(f"--{key}={value}" for key, value in flat)]


def child(folder: Path, words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """A process that runs a command in a folder; what it says goes to `folder/said`."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from un2clip.__main__ import main

        before()
        status = main(words)
    except SystemExit as error:
        status = int(str(error.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float = LONGEST_S) -> int | None:
    """Its exit status, a signal's as a negative number; None where it had to be ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def on_events(act: Callable[[int], None]) -> None:
    """Call it with the number of each file event from now on, before the event."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in EVENTS:
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def found(folder: Path) -> dict[str, str]:
    """Every output by its path, with its hash."""
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED
    }


def measure(command: Command, folder: Path) -> None:
    """An unbroken run."""
    counted = folder / "events"

    def count() -> None:
        on_events(lambda number: None if number < 0 else os.pwrite(events, f"{number:9d}".encode(), 0) and None)

    folder.mkdir()
    events = os.open(counted, os.O_WRONLY | os.O_CREAT)
    began = time.monotonic()
    status = wait(child(folder, command.words(), count))
    command.seconds = time.monotonic() - began
    assert status == 0, f"{command.stage}: {(folder / 'said').read_text()}"
    os.close(events)
    command.events, command.files = int(counted.read_text()), found(folder / "out")
    command.largest = max(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())


def harmed(command: Command, folder: Path, harm: str, rng: random.Random) -> tuple[int | None, set[int | None]]:
    """Run it with a harm: its exit status, and those that it may have."""
    if harm == "event":
        at = rng.randint(1, command.events)
        kill = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == at else None  # noqa: E731
        return wait(child(folder, command.words(), lambda: on_events(kill))), {-signal.SIGKILL, 0}
    if harm == "limit":
        size = int(command.largest * rng.random())
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # noqa: E731
        return wait(child(folder, command.words(), limit)), {0, 2}
    number = {"time": signal.SIGKILL}.get(harm) or signal.Signals[harm]
    pid = child(folder, command.words())
    time.sleep(command.seconds * rng.random())
    os.kill(pid, number)
    return wait(pid), {0, -number if harm == "time" else 128 + number}


def judge(command: Command, folder: Path, status: int | None, may: set[int | None]) -> str:
    """What is wrong after the harm, once the same command has run again; "" for nothing."""
    said = folder / "said"
    first = said.read_text() if said.is_file() else ""
    if "Traceback" in first:
        return "a traceback"
    if status not in may:
        return f"status {status}"
    if wait(child(folder, command.words())) != 0:
        return "the same command does not go on"
    if "Traceback" in said.read_text():
        return "a traceback in the second command"
    if found(folder / "out") != command.files:
        return "other bytes"
    return "an open run" if open_runs(folder) else ""


def open_runs(folder: Path) -> int:
    """Runs of the folder's store that count as running."""
    import sqlite3

    with sqlite3.connect(folder / "mlflow.db") as database:
        return int(database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0])


def table(counts: Counter[tuple[str, str]], stages: list[str], harms: list[str]) -> str:
    lines = [f"| stage | {' | '.join(harms)} |", "|---" * (len(harms) + 1) + "|"]
    lines += [f"| {stage} | {' | '.join(str(counts[stage, harm]) for harm in harms)} |" for stage in stages]
    return "\n".join(lines)


def try_all(trials: int, seed: int, stages: list[str], harms: list[str], work: Path) -> int:
    """The tries, and their table on the way out; the number of those that went wrong."""
    os.environ |= {"UN2CLIP_TRACKING": "on", "UN2CLIP_RUN": "tries", "TQDM_DISABLE": "1"}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # here, so that each child has it already

    import un2clip.stages.finetune  # noqa: F401

    base = work / "base"
    if set(stages) - {"shapes"}:  # which reads nothing
        builder = os.fork()
        if not builder:
            os.environ["UN2CLIP_TRACKING"] = "off"
            make(base)
            os._exit(0)
        assert wait(builder) == 0, "the toy pipeline itself failed"
    commands = {stage: Command(stage, base) for stage in stages}
    for stage, command in commands.items():
        measure(command, work / f"unbroken-{stage}")
        print(f"{stage}: {command.seconds:.1f} s, {command.events} file events unbroken", flush=True)
    rng, counts, wrong, stopped = random.Random(seed), Counter[tuple[str, str]](), 0, 0
    for trial in range(trials):
        stage, harm = stages[trial % len(stages)], harms[trial // len(stages) % len(harms)]
        folder = work / f"try-{trial}"
        status, may = harmed(commands[stage], folder, harm, rng)
        counts[stage, harm] += 1
        stopped += status != 0
        if what := judge(commands[stage], folder, status, may):
            wrong += 1
            print(f"WRONG: try {trial}, {stage}, {harm}: {what}\n{(folder / 'said').read_text()[-2000:]}", flush=True)
        shutil.rmtree(folder)
        print(f"{trial + 1} of {trials}: {stage}, {harm}, status {status}", flush=True)
    print(f"\n{table(counts, stages, harms)}\n\n{trials} tries, seed {seed}: {stopped} ended early, {wrong} went wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--harms", nargs="+", default=list(HARMS), choices=HARMS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        return bool(try_all(args.trials, args.seed, args.stages, args.harms, Path(work)))


if __name__ == "__main__":
    sys.exit(main())
