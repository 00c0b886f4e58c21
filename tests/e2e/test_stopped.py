"""Stages that are stopped or killed: their exit status, what MLflow says of them, and the same command again."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import WORLD
from un2clip import processes, tracking
from un2clip.__main__ import main
from un2clip.hashes import folder_sha256
from un2clip.stages import run_stage
from un2clip.tracking import predecessors, store

PARAMS = Path(__file__).parents[2] / "params.yaml"
TINY = PARAMS.parent / "tests/e2e/tiny.yaml"
SCENES = 1500  # a third of a second of rendering


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: bytes) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "UN2CLIP_TRACKING", "UN2CLIP_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    overlay = yaml.safe_load(TINY.read_text())
    overlay["shapes"]["train_scenes"] = SCENES
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    return tmp_path


def shapes(tracked: bool = True) -> int:
    """The command, in this process."""
    os.environ["UN2CLIP_TRACKING"] = "on" if tracked else "off"
    words = ["shapes", f"--params={PARAMS}", "--overlay=overlay.yaml", "--seed=1"]
    return main([*words, *(f"--{name}=world/{name}" for name in WORLD)])


def killed(act: Callable[[], int], when: Callable[[], bool], number: int) -> int:
    """Do it in a process of its own, which gets a signal once something is so; its exit status."""
    if not (child := os.fork()):
        status = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # other tests' libraries leave theirs in the process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            status = act()
        except SystemExit as error:
            status = int(str(error.code))
        finally:
            os._exit(status)
    until = time.monotonic() + 60
    while not when() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rendering() -> bool:
    return Path("world/.images.partial/train").is_dir()


def runs() -> dict[str, str]:
    """Status of each stage's run, and of their parents, by id."""
    client = store.connect()
    return {run.info.run_id: run.info.status for run in client.search_runs([store.experiment(client)])}


@pytest.mark.parametrize(
    ("number", "status", "why"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "KeyboardInterrupt")],
)
def test_a_signal_is_another_exit_status_and_a_killed_run(folder: Path, capfd, number, status, why: str) -> None:
    """Run and parent are closed, one sentence is said, nothing half made is left."""
    assert killed(shapes, rendering, number) == status
    assert set(runs().values()) == {"KILLED"} and len(runs()) == 2
    client = store.connect()
    tags = [client.get_run(run).data.tags.get(tracking.ERROR_TAG, "") for run in runs()]
    assert any(why in tag for tag in tags)
    said = capfd.readouterr().err.splitlines()  # a bar may be closed after the sentence
    assert any(line.startswith("un2clip: ") and "finished stages are kept" in line for line in said)
    assert not any(Path("world").rglob("*"))


def test_a_killed_stage_is_closed_by_the_next_one(folder: Path, monkeypatch) -> None:
    """kill -9 leaves its run open; who starts next proves it gone. One that lives, or is elsewhere, stays open."""
    assert killed(shapes, rendering, signal.SIGKILL) == -signal.SIGKILL
    assert set(runs().values()) == {"RUNNING"}
    gone = set(runs())
    client = store.connect()
    me = processes.here()
    others = [me, dataclasses.replace(me, start="1", host="elsewhere"), dataclasses.replace(me, boot="b", start="1")]
    alive = [
        client.create_run(store.experiment(client), tags={predecessors.PROCESS_TAG: str(each)}).info.run_id
        for each in others
    ]
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "another")
    with tracking.stage_run("ingest", params={}, names={}):
        found = runs()
        assert {found[run] for run in gone} == {"KILLED"}, "its parent too"
        assert {found[run] for run in alive} == {"RUNNING"}
    said = {client.get_run(run).data.tags.get(tracking.ERROR_TAG) for run in gone}
    assert said == {None, predecessors.GONE}


def test_in_a_pod_the_earlier_attempt_is_over(folder: Path, monkeypatch) -> None:
    """Kubeflow starts a task again when its pod is gone; which host it was on does not matter. Other tasks go on."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "run-of-kubeflow")
    client = store.connect()
    tags = {"mlflow.parentRunId": store.parent_run(client), predecessors.PROCESS_TAG: "pod-1 b n 1 5"}
    earlier, other = (
        client.create_run(store.experiment(client), tags=tags, run_name=name).info.run_id
        for name in ("evaluate zeroshot", "evaluate mmvp_vlm")
    )
    for pod, status in ((False, "RUNNING"), (True, "KILLED")):
        if pod:
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        with tracking.stage_run("evaluate", params={}, names={"benchmark": "zeroshot"}):
            assert (runs()[earlier], runs()[other]) == (status, "RUNNING")
    assert client.get_run(earlier).data.tags[tracking.ERROR_TAG] == predecessors.EARLIER


def test_shapes_goes_on_after_a_kill_anywhere(folder: Path) -> None:
    """While it renders, between its folders, in the last ones: an unbroken call's bytes; twice changes nothing."""
    assert shapes(tracked=False) == 0
    unbroken = folder_sha256(Path("world"))
    Path("world").rename("unbroken")
    for when in (
        rendering,
        lambda: Path("world/images").is_dir(),
        lambda: Path("world/benchmarks/.zeroshot.partial").is_dir(),
    ):
        assert killed(lambda: shapes(tracked=False), when, signal.SIGKILL) == -signal.SIGKILL
    for _ in range(2):
        assert shapes(tracked=False) == 0
        assert folder_sha256(Path("world")) == unbroken
    Path("world/images/train/00000.tar").write_bytes(b"mine")
    assert shapes(tracked=False) == 2, "what something else wrote is not replaced"
    assert Path("world/images/train/00000.tar").read_bytes() == b"mine"


def test_sigterm_in_a_stage_that_is_called_from_python(folder: Path, tiny) -> None:
    """As by Kubeflow's executor: the exception ends the process with the shell's status."""
    os.environ["UN2CLIP_TRACKING"] = "off"
    section = tiny.params["shapes"] | {"train_scenes": SCENES}

    def act() -> int:
        run_stage("shapes", section, seed=1, **{name: f"world/{name}" for name in WORLD})
        return 0

    assert killed(act, rendering, signal.SIGTERM) == 143
