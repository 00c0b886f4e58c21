"""Promotions in real processes: killed with -9 at drawn points, and eight of one encoder at once.

One process imports everything and forks the others, since importing takes longer than promoting. A point is a commit of
the store's database, or a file that is opened for writing, renamed or removed: whatever can be seen from outside.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.candidates import Candidate, new_weights
from un2clip.models.registry import Registry
from un2clip.tracking import store

ROOT = Path(__file__).parents[2]
NAME, POINTS, TOGETHER = "un2clip", 6, 8


def fork(work: Callable[[], None], folder: Path) -> int:
    """A process that works in a folder, which it gets a store in; its id. What it says goes to a file there."""
    if process := os.fork():
        return process
    status = 1
    try:
        os.chdir(folder)
        sys.stdout = sys.stderr = (folder / f"log-{os.getpid()}").open("w", buffering=1)
        work()
        status = 0
    except BaseException as error:
        print(repr(error))
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Exit status; -9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def count_events(at: int, seen: Path) -> None:
    """Kill this process before its event number `at`; otherwise keep the number of events that there are."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    count = 0

    def happens(*given: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        elif not at:
            os.write(counter, b".")

    def audit(name: str, given: tuple[object, ...]) -> None:
        writes = name == "open" and isinstance(given[1], str) and set("wax+") & set(given[1])
        if writes or name in ("os.rename", "os.remove", "os.symlink"):
            happens()

    counter = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    event.listen(Engine, "commit", happens)
    sys.addaudithook(audit)


def promotion(made: Candidate, at: int = -1) -> Callable[[], None]:
    """A promotion that is killed at event `at`; -1 for one that is not, 0 for one whose events are counted."""

    def work() -> None:
        if at >= 0:
            count_events(at, Path("events"))
        made.promote(Registry(NAME))

    return work


def held(folder: Path) -> dict[str, object]:
    """What the store of a folder holds, by its own tables."""
    with sqlite3.connect(folder / "mlflow.db") as tables:
        versions = tables.execute("select version from model_versions where current_stage = 'None'").fetchall()
        aliases = tables.execute("select alias, version from registered_model_aliases").fetchall()
    return {"versions": sorted(number for (number,) in versions), "aliases": dict(aliases)}


def main(root: Path) -> None:
    """Do everything below `root` and write there what came of it."""
    for variable in ("MLFLOW_TRACKING_URI", "UN2CLIP_TRACKING"):
        os.environ.pop(variable, None)
    for name in ("artifacts", "pyfunc", "store.model_registry.sqlalchemy_store", "store.tracking.sqlalchemy_store"):
        importlib.import_module(f"mlflow.{name}")
    importlib.import_module("mlflow.system_metrics.system_metrics_monitor")
    weights = new_weights()
    (root / "store").mkdir()
    assert ended(fork(store.connect, root / "store")) == 0  # the tables are made once

    def fresh(name: str) -> tuple[Path, Candidate]:
        shutil.copytree(root / "store", root / name)
        return root / name, Candidate(root / name, weights, "a", detail=160)

    folder, made = fresh("counted")
    first = ended(fork(promotion(made, 0), folder))
    events = (folder / "events").stat().st_size
    found: dict[str, object] = {"events": events, "counted": [first, held(folder)], "kills": [], "together": None}
    for at in sorted(random.Random(0).sample(range(1, events + 1), POINTS)):
        folder, made = fresh(f"killed-{at}")
        killed = ended(fork(promotion(made, at), folder))
        again = ended(fork(promotion(made), folder))
        decision = (folder / "a/decision/decision.json").read_text()
        found["kills"].append({"at": at, "ended": [killed, again], "decision": decision, **held(folder)})
    folder, made = fresh("together")
    others = [Candidate(folder, weights, f"twin{n}", detail=160) for n in range(1, TOGETHER)]
    processes = [fork(promotion(each), folder) for each in (made, *others)]
    found["together"] = {"ended": [ended(each) for each in processes], **held(folder)}
    found["decisions"] = [path.read_text() for path in sorted(folder.glob("*/decision/decision.json"))]
    (root / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What came of it."""
    root = tmp_path_factory.mktemp("promotions")
    words = [sys.executable, "-m", "tests.e2e.test_promote_kills", str(root)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    return json.loads((root / "found.json").read_text())


def test_after_kill_9_the_same_command_decides_the_same(found) -> None:
    """Whatever was written by then, the second try ends with the same bytes, one version, and the aliases on it."""
    assert found["events"] > 40 and found["counted"][0] == 0
    assert len(found["kills"]) == POINTS
    assert [each["ended"] for each in found["kills"]] == [[-signal.SIGKILL, 0]] * POINTS
    assert len({each["decision"] for each in found["kills"]}) == 1
    one = {"versions": [1], "aliases": {"challenger": 1, "champion": 1}}
    assert found["counted"][1] == one
    assert [{key: each[key] for key in one} for each in found["kills"]] == [one] * POINTS


def test_promotions_at_once_make_one_version(found) -> None:
    """Eight processes promote the same new encoder: all succeed, with the same decision and one version."""
    assert found["together"]["ended"] == [0] * TOGETHER
    assert len(found["decisions"]) == TOGETHER and len(set(found["decisions"])) == 1
    assert len(found["together"]["versions"]) == 1
    (number,) = found["together"]["versions"]
    assert found["together"]["aliases"] == {"challenger": number, "champion": number}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
