"""A tracking server that hangs, refuses or dies while a stage runs: it costs the stage nothing, and loses nothing."""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from un2clip import tracking
from un2clip.tracking import curves, patience

STEPS = 40


class Server(ThreadingHTTPServer):
    """As much of MLflow's REST API as a stage asks for; it answers, hangs or refuses as it is told.

    Attributes:
        mood: well; hanging: it takes a request and never answers; broken: it answers 503.
        points: name of a metric -> (step, value), each once, as MLflow keeps them by time, step and value.
        asked: when each batch of metrics came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mood, self.status = "well", "RUNNING"
        self.points: dict[str, set[tuple[int, int, float]]] = defaultdict(set)
        self.asked: list[float] = []
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        run = {"info": {"run_id": "run", "experiment_id": "1", "status": self.server.status}, "data": {}}
        found = {"experiment": {"experiment_id": "1", "name": "un2clip", "lifecycle_stage": "active"}, "run": run}
        self._answer(found)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path.endswith("log-batch") and body.get("metrics"):
            self.server.asked.append(time.monotonic())
            if self.server.mood == "well":
                for each in body["metrics"]:
                    self.server.points[each["key"]].add((each["step"], each["timestamp"], each["value"]))
        if self.path.endswith("runs/update") and self.server.mood == "well" and body.get("status") == "FINISHED":
            self.server.status = body["status"]
        run = {"run": {"info": {"run_id": "run", "experiment_id": "1", "status": self.server.status}, "data": {}}}
        self._answer(run | {"run_info": run["run"]["info"], "runs": []} if "search" in self.path else run)

    do_PATCH = do_POST

    def _answer(self, content: dict[str, Any]) -> None:
        if self.server.mood == "hanging":
            self.server.over.wait()
            return
        self.send_response(200 if self.server.mood == "well" else 503)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server, and times that are a twentieth of the real ones; it names no place for files: they go to the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(curves, "ANSWER_S", 1)
    monkeypatch.setattr(tracking, "ANSWER_S", 0.2)
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "dead")
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{running.server_port}")
        yield running
        running.over.set()
        running.shutdown()


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A stage of forty quick steps that meets a mood of the server at step 1 and another one before its end."""
    monkeypatch.setattr(tracking, "parent_run", lambda client: "parent")  # the stub keeps no runs
    monkeypatch.setattr(tracking, "settle", lambda client, parent: None)
    slowest = 0.0

    def stage(mood: str, at_the_end: str) -> float:
        nonlocal slowest
        with tracking.stage_run("finetune", params={}, names={"encoder": tmp_path}):
            for step in range(STEPS):
                if step == 1:
                    server.mood = mood
                began = time.monotonic()
                tracking.log_metrics(step, {"step": step, "loss": step * 0.25, "images_per_s": step * 3.0})
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.02)
            time.sleep(0.3)
            history = [{"step": step, "loss": step * 0.25} for step in range(STEPS)]
            (tmp_path / "history.json").write_text(json.dumps(history))
            server.mood = at_the_end
        return slowest

    return stage


@pytest.mark.parametrize("mood", ["hanging", "broken"])
def test_the_loop_does_not_wait_and_the_curves_are_whole_in_the_end(server: Server, run, mood, capfd) -> None:
    """Away from step 1 to the last: no step waits, one request fails, and every point comes at the end, once."""
    began = time.monotonic()
    slowest = run(mood, "well")
    assert slowest < 0.1 and time.monotonic() - began < 15
    for name, factor in (("loss", 0.25), ("images_per_s", 3.0)):
        found = sorted((step, value) for step, _, value in server.points[name])
        assert found == [(step, step * factor) for step in range(STEPS)]
    said = capfd.readouterr().err
    assert said.count("MLflow did not take curves") == 1 and "the next try is at the end" in said
    assert server.status == "FINISHED"


def test_after_a_failure_nothing_more_is_asked_until_the_end(server: Server, run) -> None:
    """Between the first failure and the end there is no request with metrics."""
    run("broken", "well")
    assert len(server.asked) >= 2
    gaps = [after - before for before, after in zip(server.asked, server.asked[1:], strict=False)]
    assert max(gaps) > 0.5, server.asked


def test_a_server_that_stays_away_is_said_once_and_not_waited_for(server: Server, run, monkeypatch, capfd) -> None:
    """The stage ends well and soon, and says what its run lacks."""
    monkeypatch.setattr(patience, "TIMEOUT_S", 1)
    began = time.monotonic()
    run("hanging", "hanging")
    assert time.monotonic() - began < 20
    said = capfd.readouterr().err
    assert said.count("MLflow is away at the end of the stage") == 1 and "its run run may lack" in said


def test_the_queue_is_bounded_and_what_is_lost_is_said(server: Server, run, monkeypatch, capfd) -> None:
    """Points beyond it that history.json has are made up; of the others it is said how many are lost."""
    monkeypatch.setattr(curves, "WAITING", 20)
    run("broken", "well")
    assert len(server.points["loss"]) == STEPS
    lost = STEPS - len(server.points["images_per_s"])
    assert (
        0 < lost
        and f"points that waited too long for MLflow are lost: {lost} of images_per_s" in capfd.readouterr().err
    )


def test_the_users_own_patience_goes_before_ours(monkeypatch) -> None:
    """And what is open in two threads is closed in any order."""
    import os

    monkeypatch.setenv(patience.TRIES, "3")
    monkeypatch.delenv(patience.TIMEOUT, raising=False)
    one, two = patience.impatient(0, 5), patience.impatient(1, 20)
    one.__enter__()
    assert (os.environ[patience.TRIES], os.environ[patience.TIMEOUT]) == ("3", "5")
    two.__enter__()
    assert os.environ[patience.TIMEOUT] == "20"
    one.__exit__(None, None, None)
    assert os.environ[patience.TIMEOUT] == "20"
    two.__exit__(None, None, None)
    assert os.environ[patience.TRIES] == "3" and patience.TIMEOUT not in os.environ


def test_a_refused_connection_is_unreachable_and_a_refused_name_is_not() -> None:
    """So that one bad point does not cost the others their curve."""
    from mlflow.exceptions import MlflowException

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    from mlflow import MlflowClient

    with pytest.raises(MlflowException) as refused, patience.impatient(0, 1):
        MlflowClient(f"http://127.0.0.1:{port}").get_experiment("1")
    assert patience.unreachable(refused.value)
    assert not patience.unreachable(MlflowException("Invalid metric name", error_code=1000))
