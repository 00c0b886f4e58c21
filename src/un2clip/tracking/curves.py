"""The curves of a run that is going on, sent by a thread: nothing that MLflow does or does not holds a training up."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from un2clip.errors import reason
from un2clip.tracking.patience import impatient, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

Point = tuple[int, str, float]  # step, name, value

METRICS_PER_REQUEST = 1000  # MLflow's limit
WAITING = 20_000  # points that are held at most while a server is away; at ten a step, 2,000 steps
ANSWER_S = 5  # seconds; a server that takes longer is taken for one that is away


class Curves:
    """Points on their way to a run.

    Once the server did not answer, it is left alone until `make_up`; meanwhile up to WAITING points are held, and what
    is beyond them counts as lost. Points that it refuses are dropped, and that is said.

    Attributes:
        failed: whether the server did not answer.
    """

    def __init__(self, client: "MlflowClient", run_id: str, every_s: float) -> None:
        self._client, self._run_id, self._every_s = client, run_id, every_s
        self.failed = False
        self._waiting: list[Point] = []
        self._lost: list[Point] = []
        self._stamps: dict[int, int] = {}  # step -> ms: a point that is sent twice is then one to MLflow
        self._sent: set[tuple[int, str]] = set()
        self._guard, self._wake, self._ended = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="un2clip curves", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        points = [(step, name, float(value)) for name, value in values.items() if name != "step"]
        with self._guard:
            self._stamps.setdefault(step, time.time_ns() // 1_000_000)
            room = max(0, WAITING - len(self._waiting))
            self._waiting += points[:room]
            self._lost += points[room:]

    def finish(self) -> None:
        """Stop the thread; it is not waited for longer than a request may take."""
        self._ended = True
        self._wake.set()
        self._thread.join(ANSWER_S + 1)
        if self._thread.is_alive():
            self.failed = True
            self._say(TimeoutError("no answer"))

    def make_up(self, history: Sequence[Point] = ()) -> None:
        """Send what waits, and what a history file has besides.

        What neither has is said by a call without a history, the last one.

        Raises:
            Exception: MLflow's, where it does not answer now either.
        """
        with self._guard:
            waiting, self._waiting = self._waiting, []
        for points in (waiting, [point for point in history if point[:2] not in self._sent]):
            try:
                self._send(points)
            except Exception as error:
                if unreachable(error):
                    raise
                self._say(error)
        lost = Counter(name for step, name, _ in self._lost if (step, name) not in self._sent)
        if lost and not history:
            names = ", ".join(f"{count} of {name}" for name, count in lost.items())
            print(f"un2clip: points that waited too long for MLflow are lost: {names}", file=sys.stderr)

    def _run(self) -> None:
        while not self._ended and not self.failed:
            self._wake.wait(self._every_s)
            with self._guard:
                points = self._waiting[:]
            if not points:
                continue
            try:
                with impatient(tries=0, timeout_s=ANSWER_S):
                    self._send(points)
            except Exception as error:
                self.failed = unreachable(error)
                self._say(error)
            if not self.failed:
                with self._guard:
                    self._waiting = self._waiting[len(points) :]

    def _send(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, self._stamp(step), step) for step, name, value in points]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            part = slice(first, first + METRICS_PER_REQUEST)
            self._client.log_batch(self._run_id, metrics=metrics[part])
            self._sent.update(point[:2] for point in points[part])

    def _stamp(self, step: int) -> int:
        return self._stamps.setdefault(step, time.time_ns() // 1_000_000)

    def _say(self, error: BaseException) -> None:
        later = "; the next try is at the end" if self.failed and not self._ended else ""
        print(f"un2clip: MLflow did not take curves: {reason(error)}{later}", file=sys.stderr)
