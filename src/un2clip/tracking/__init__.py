"""MLflow: one parent run a pipeline run, one nested run a stage. Only this package imports mlflow.

Tracking never changes a stage's result: a store that cannot be reached stops the stage before any work,
and whatever goes wrong after that is one line on stderr. UN2CLIP_TRACKING=off switches all of it off.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from un2clip import processes
from un2clip.config import flatten
from un2clip.datasets.shards import digest
from un2clip.devices import rank
from un2clip.errors import Stopped, Terminated, UserError, raise_stop, reason, without_password
from un2clip.evidence.scores import ROLES, load_scores
from un2clip.tracking import store
from un2clip.tracking.curves import ANSWER_S, Curves
from un2clip.tracking.patience import impatient, unreachable
from un2clip.tracking.predecessors import ERROR_TAG, PROCESS_TAG, close_gone, settle
from un2clip.tracking.results import Result, read_history, result_files
from un2clip.tracking.store import as_user_error, connect, experiment, git_tag, is_off, parent_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCORES_FILES = tuple(f"{role}.json" for role in ROLES)
LETTERS = 1000  # of it that are kept; MLflow refuses long tags
FLUSH_SECONDS = 5.0  # live curves are sent this often: a write takes 10 ms and more

_active: "_Run | None" = None


def active_run() -> str | None:
    """Id of the stage's own run; None outside of one, or when tracking is off."""
    return _active.run_id if _active else None


@contextmanager
def stage_run(name: str, *, params: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[None]:
    """Keep one nested run around one stage.

    Args:
        name: the stage.
        params: its section of params.yaml, plain data.
        names: its inputs and outputs by name. A small file that the stage writes directly in one of these
            folders, or one folder below, is kept: history.json as curves, scores files as metrics, and
            PNG, HTML and JSON as artifacts.

    Raises:
        UserError: the store cannot be reached. What the stage itself raises passes through unchanged.
    """
    global _active
    if is_off() or rank() > 0:
        yield
        return
    before = result_files(names)
    run = _active = _StageRun(name, params, names)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Stopped | Terminated | KeyboardInterrupt)
        run.end("KILLED" if stopped else "FAILED", names, before, _why(error))
        raise
    else:
        run.end("FINISHED", names, before)
    finally:
        _active = None


@contextmanager
def attached(run_id: str | None) -> Iterator[None]:
    """In a process that a stage has started: what it logs goes to the stage's run."""
    global _active
    if run_id is None:
        yield
        return
    run = _active = _Run(connect(), run_id)
    try:
        yield
    finally:
        run.finish_curves()
        _active = None


def tag(name: str, value: str | None) -> None:
    """Tag the stage's run; does nothing outside of a tracked stage, or without a value."""
    if _active and value:
        with _tolerate(f"tag {name}"), impatient():
            _active.client.set_tag(_active.run_id, f"un2clip.{name}", value)


def log_metrics(step: int, values: Mapping[str, float]) -> None:
    """Add one point to live curves of the running stage; does nothing outside of a tracked stage."""
    if _active:
        _active.curves.add(step, values)


def log_table(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep rows as a table of the stage's run, which MLflow's UI sets beside other runs' of that name.

    Does nothing outside of a tracked stage.

    Args:
        name: of the file, such as comparison.json.
        rows: each with the same columns.
    """
    if _active and rows:
        with _tolerate(f"table {name}"):
            _active.client.log_table(_active.run_id, {key: [row[key] for row in rows] for key in rows[0]}, name)


class _Run:
    """A run that is going on, and its curves."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.curves = Curves(client, run_id, FLUSH_SECONDS)

    def finish_curves(self) -> None:
        self.curves.finish()
        with _tolerate("curves"), impatient():
            self.curves.make_up()


class _StageRun(_Run):
    """The run of one stage. Only its creation may raise; everything later is tolerated and reported."""

    def __init__(self, name: str, params: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.client = connect()
        self.started = time.monotonic()
        parts = [name, *(str(names[key]) for key in ("method", "benchmark") if key in names)]  # "evaluate zeroshot"
        with as_user_error(), impatient():
            self.parent_id = parent_run(self.client)
            with _tolerate("the ends of killed stages"):
                close_gone(self.client, self.parent_id, " ".join(parts))
            tags = {"mlflow.parentRunId": self.parent_id, "mlflow.source.name": f"un2clip {name}"} | git_tag()
            tags[PROCESS_TAG] = str(processes.here())
            run = self.client.create_run(experiment(self.client), tags=tags, run_name=" ".join(parts))
            super().__init__(self.client, run.info.run_id)
            self.client.update_run(self.parent_id, status="RUNNING")
        with impatient():
            with _tolerate("parameters"):
                self._log_params(self.run_id, flatten(params) | {key: str(value) for key, value in names.items()})
            with _tolerate("parameters of the parent run"):
                self._log_params(self.parent_id, flatten(params, f"{name}."))
        self.monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.client.tracking_uri)
        self.monitor.start()

    def end(self, status: str, names: Mapping[str, Any], before: Mapping[Path, Result], why: str = "") -> None:
        """Close the run. Where the server is away, that is said once, and nothing more is asked of it."""
        finishing = threading.Thread(target=self.monitor.finish, daemon=True)
        finishing.start()
        self.curves.finish()
        if not self.curves.failed:  # two threads that write to one sqlite file can find it locked at once
            finishing.join(ANSWER_S)
        try:
            with impatient():
                if why:
                    with _tolerate("why the stage failed", passing=unreachable):
                        self.client.set_tag(self.run_id, ERROR_TAG, why[:LETTERS])
                for path, result in result_files(names).items():
                    with _tolerate(str(path), passing=unreachable):
                        self._keep(path, result, written=before.get(path) != result)
                with _tolerate("curves", passing=unreachable):
                    self.curves.make_up()
                finishing.join(ANSWER_S)
                with _tolerate("the end of the run", passing=unreachable):
                    self.client.log_metric(self.run_id, "duration_s", time.monotonic() - self.started)
                    self.client.set_terminated(self.run_id, status)
                    settle(self.client, self.parent_id)
        except Exception as error:
            print(
                f"un2clip: MLflow is away at the end of the stage ({reason(error)}); what the stage wrote is "
                f"whole, but its run {self.run_id} may lack curves, scores and files, and stays open until a later "
                "stage closes it",
                file=sys.stderr,
            )

    def _keep(self, path: Path, result: Result, *, written: bool) -> None:
        """Keep one result file: an index as data set, and if this stage wrote it, curves, scores, the file."""
        if path.name == "index.json" and not result.below:
            self._log_dataset(result.argument, path.parent, "output" if written else "input")
        if not written:
            return
        if path.name == "history.json":
            self.curves.make_up(read_history(path, result.below))
        elif path.name in SCORES_FILES:
            scores = load_scores(path)
            for run_id in (self.run_id, self.parent_id):
                self.client.log_metric(run_id, f"{scores.benchmark}/{scores.role}", scores.score)
                self.client.log_metric(run_id, f"{scores.benchmark}/n", scores.n)
            for name, value in store.scores_tags(scores).items():
                self.client.set_tag(self.run_id, name, value)
        self.client.log_artifact(self.run_id, str(path), result.folder)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        hidden = {key: without_password(value) for key, value in params.items()}
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in hidden.items()])

    def _log_dataset(self, name: str, shards: Path, context: str) -> None:
        """Log name and digest of a folder of shards."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(shards)})
        dataset = Dataset(name=name, digest=digest(shards)[: store.DIGEST], source_type="local", source=source)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def _why(error: BaseException) -> str:
    """An error in one line: the sentence that the user would read, or else the error that began it."""
    if isinstance(error, Terminated):
        return "stopped by SIGTERM"
    if isinstance(error, UserError):
        return without_password(" ".join(str(error).split()))
    return reason(error)


@contextmanager
def _tolerate(what: str, passing: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Say what went wrong within instead of raising it, unless it is `passing`."""
    try:
        yield
    except Exception as error:
        raise_stop(error)
        if passing(error):
            raise
        print(f"un2clip: MLflow did not take {what}: {reason(error)}", file=sys.stderr)
