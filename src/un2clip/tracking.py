"""MLflow: one parent run a pipeline run, one nested run a stage. The only module that imports mlflow.

The store is `sqlite:///mlflow.db` in the current directory unless MLFLOW_TRACKING_URI names another.
Tracking never changes a stage's result: a store that cannot be reached stops the stage before any work,
and whatever goes wrong after that is one line on stderr. UN2CLIP_TRACKING=off switches all of it off.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from un2clip.config import UserError
from un2clip.datasets.shards import digest
from un2clip.results import Result, flatten, read_history, result_files
from un2clip.scores import ROLES, load_scores

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "un2clip"
PARENT_TAG = "un2clip.run"
SCORES_FILES = tuple(f"{role}.json" for role in ROLES)
METRICS_PER_REQUEST = 1000  # MLflow's limit
FLUSH_SECONDS = 5.0  # live curves are sent this often: a write takes 10 ms and more

_active: "_Live | None" = None


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
    from un2clip import distributed  # here, since it imports torch, and `un2clip --help` stays quick

    if os.environ.get("UN2CLIP_TRACKING", "").lower() == "off" or distributed.rank() > 0:
        yield
        return
    before = result_files(names)
    run = _active = _StageRun(name, params, names)
    try:
        yield
    except BaseException:
        run.end("FAILED", names, before)
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
    _active = _Live(connect(), run_id)
    try:
        yield
    finally:
        _active.flush()
        _active = None


def tag(name: str, value: str | None) -> None:
    """Tag the stage's run; does nothing outside of a tracked stage, or without a value."""
    if _active and value:
        with _tolerate(f"tag {name}"):
            _active.client.set_tag(_active.run_id, f"un2clip.{name}", value)


def log_metrics(step: int, values: Mapping[str, float]) -> None:
    """Add one point to live curves of the running stage; does nothing outside of a tracked stage."""
    if _active:
        _active.add(step, values)


def connect() -> "MlflowClient":
    """A client of the store that answered one request; credentials are MLflow's own variables.

    Raises:
        UserError: the store does not answer.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for direction in ("UPLOAD", "DOWNLOAD"):  # through the server: its S3 store may have a name that only it knows
        os.environ.setdefault(f"MLFLOW_ENABLE_PROXY_MULTIPART_{direction}", "false")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):  # after the import, which sets a level of its own
        logging.getLogger(chatty).setLevel(logging.ERROR)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        if not given and not os.access(".", os.W_OK):
            raise PermissionError("the current directory is read-only")  # SQLAlchemy would try for minutes
        with _impatient():
            client = MlflowClient(tracking_uri=uri)
            _experiment(client)
    except Exception as error:
        raise UserError(
            f"MLflow at {without_password(uri)} cannot be used ({reason(error)}); start it, or unset "
            "MLFLOW_TRACKING_URI for a local mlflow.db, or set UN2CLIP_TRACKING=off"
        ) from None
    return client


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn whatever MLflow raises (its own errors, the network's, the object store's) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow refused: {reason(error)}") from None


def has_artifacts(client: "MlflowClient", run_id: str, folder: str) -> bool:
    """Whether a run still exists and kept anything in a folder of its artifacts."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.list_artifacts(run_id, folder))
    except MlflowException:
        return False


def download(client: "MlflowClient", uri: str, to: Path) -> Path:
    """Download an artifact folder (`runs:/ID/folder`, `models:/name/1`) and return where it lies."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(uri, dst_path=str(to), tracking_uri=client.tracking_uri))


class _Live:
    """The curves of a run that is going on. Nothing here raises; what goes wrong is reported."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.flushed = time.monotonic()
        self.waiting: list[tuple[int, str, float]] = []
        self.sent: set[tuple[int, str]] = set()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.waiting += [(step, name, float(value)) for name, value in values.items() if name != "step"]
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits. What could not be sent is dropped: history.json brings it at the end."""
        points, self.waiting, self.flushed = self.waiting, [], time.monotonic()
        with _tolerate("curves"):
            self._log_points(points)
            self.sent.update((step, name) for step, name, _ in points)

    def _log_points(self, points: list[tuple[int, str, float]]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now, step) for step, name, value in points]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + METRICS_PER_REQUEST])


class _StageRun(_Live):
    """The run of one stage. Only its creation may raise; everything later is tolerated and reported."""

    def __init__(self, name: str, params: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.client = connect()
        self.started = time.monotonic()
        words = [name, *(str(names[key]) for key in ("method", "benchmark") if key in names)]  # "evaluate zeroshot"
        with as_user_error():
            self.parent_id = parent_run(self.client)
            tags = {"mlflow.parentRunId": self.parent_id, "mlflow.source.name": f"un2clip {name}"} | _git_tag()
            run = self.client.create_run(_experiment(self.client), tags=tags, run_name=" ".join(words))
            super().__init__(self.client, run.info.run_id)
            self.client.update_run(self.parent_id, status="RUNNING")
        with _tolerate("parameters"):
            self._log_params(self.run_id, flatten(params) | {key: str(value) for key, value in names.items()})
        with _tolerate("parameters of the parent run"):
            self._log_params(self.parent_id, flatten(params, f"{name}."))
        self.monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.client.tracking_uri)
        self.monitor.start()

    def end(self, status: str, names: Mapping[str, Any], before: Mapping[Path, Result]) -> None:
        self.flush()
        for path, result in result_files(names).items():
            with _tolerate(str(path)):
                self._keep(path, result, written=before.get(path) != result)
        with _tolerate("the end of the run"):
            self.monitor.finish()
            self.client.log_metric(self.run_id, "duration_s", time.monotonic() - self.started)
            self.client.set_terminated(self.run_id, status)
            self._settle()

    def _keep(self, path: Path, result: Result, *, written: bool) -> None:
        """Keep one result file: an index as data set, and if this stage wrote it, curves, scores, the file."""
        if path.name == "index.json" and not result.below:
            self._log_dataset(result.argument, path.parent, "output" if written else "input")
        if not written:
            return
        if path.name == "history.json":
            points = read_history(path, result.below)
            self._log_points([point for point in points if point[:2] not in self.sent])
        elif path.name in SCORES_FILES:
            scores = load_scores(path)
            for run_id in (self.run_id, self.parent_id):
                self.client.log_metric(run_id, f"{scores.benchmark}/{scores.role}", scores.score)
                self.client.log_metric(run_id, f"{scores.benchmark}/n", scores.n)
        self.client.log_artifact(self.run_id, str(path), result.folder)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])

    def _log_dataset(self, name: str, shards: Path, context: str) -> None:
        """Log name and digest of a folder of shards; MLflow has room for 36 letters of a digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(shards)})
        dataset = Dataset(name=name, digest=digest(shards)[:32], source_type="local", source=source)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def _settle(self) -> None:
        """Set the parent's state from the latest run of each stage: several may run at the same time."""
        states = {run.info.run_name: run.info.status for run in stage_runs(self.client, self.parent_id)}.values()
        if "RUNNING" not in states:
            self.client.set_terminated(self.parent_id, "FAILED" if "FAILED" in states else "FINISHED")


def stage_runs(client: "MlflowClient", parent_id: str) -> list["Run"]:
    """The runs of a parent's stages, the oldest first."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_id}'"
    return list(client.search_runs([_experiment(client)], wanted, order_by=["attributes.start_time ASC"]))


def run_key() -> str:
    """What one pipeline run is: UN2CLIP_RUN if set, otherwise the configuration's content.

    Separate processes of one `dvc repro` find the same parent through it.
    """
    if given := os.environ.get("UN2CLIP_RUN"):
        return given
    params = Path("params.yaml")
    content = params.read_bytes() if params.is_file() else b""
    return hashlib.sha256(content + "".join(_git_tag().values()).encode()).hexdigest()[:12]


def _git_tag() -> dict[str, str]:
    try:
        shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": shown.stdout.strip()}


def _experiment(client: "MlflowClient") -> str:
    """Id of the experiment, made on first use."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(EXPERIMENT))
    except Exception:  # another process was quicker, or the store is at fault
        if found := client.get_experiment_by_name(EXPERIMENT):
            return str(found.experiment_id)
        raise


def parent_run(client: "MlflowClient") -> str:
    """Find or create the parent run. Of two processes that create one, the older run wins."""
    key, experiment = run_key(), _experiment(client)

    def oldest_first() -> list[str]:
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        runs = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{key}'", order_by=order)
        return [run.info.run_id for run in runs]

    if found := oldest_first():
        return found[0]
    created = client.create_run(experiment, tags={PARENT_TAG: key} | _git_tag(), run_name=f"pipeline {key}")
    winner = oldest_first()[0]
    if winner != created.info.run_id:
        client.delete_run(created.info.run_id)
    return winner


@contextmanager
def _impatient() -> Iterator[None]:
    """Let MLflow try once and briefly, so that a server that is down shows at once; its default is minutes."""
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    ours = {key: value for key, value in short.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            del os.environ[key]


@contextmanager
def _tolerate(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"un2clip: MLflow did not take {what}: {reason(error)}", file=sys.stderr)


def reason(error: BaseException) -> str:
    """The error that began it, in one line: behind a refused connection MLflow stacks four."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {without_password(' '.join(str(error).split()))}"


def without_password(text: str) -> str:
    """The text, with the user and password of every address in it hidden."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
