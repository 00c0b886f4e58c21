"""An MLflow server that is restarting when a stage begins: a laptop is told at once, a pod asks again."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from un2clip.errors import UserError
from un2clip.tracking import store


class Restarting(BaseHTTPRequestHandler):
    """Answers 503 a number of times, and then with the experiment that is asked for."""

    def do_GET(self) -> None:
        self.server.away -= 1  # type: ignore[attr-defined]
        away = self.server.away >= 0  # type: ignore[attr-defined]
        self.send_response(503 if away else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        found = {"experiment": {"experiment_id": "7", "name": store.EXPERIMENT, "lifecycle_stage": "active"}}
        self.wfile.write(json.dumps({} if away else found).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Restarting) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # the waits are MLflow's own
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        yield running
        running.shutdown()


@pytest.mark.parametrize(
    ("host", "away", "reached"), [("", 1, True), ("", 3, False), ("k8s", 5, True), ("k8s", 9, False)]
)
def test_a_pod_asks_again(monkeypatch, server, host: str, away: int, reached: bool) -> None:
    """No Kubeflow of every version starts a failed stage again, so a stage in a pod outlives a restart by itself."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if host:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    server.away = away
    if reached:
        assert store.experiment(store.connect()) == "7"
    else:
        with pytest.raises(UserError, match="MLflow at .* cannot be used"):
            store.connect()
