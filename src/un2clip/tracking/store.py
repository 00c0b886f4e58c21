"""The MLflow store: how it is reached, what was kept there, and what went wrong, said without a password.

The store is `sqlite:///mlflow.db` in the current directory unless MLFLOW_TRACKING_URI names another. Its runs: one
parent a pipeline run, below it one a stage.
"""

import hashlib
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from un2clip.config import FILES
from un2clip.errors import UserError, raise_stop, reason
from un2clip.files.outputs import only_one
from un2clip.processes import deferring
from un2clip.tracking import local, refusals
from un2clip.tracking.patience import impatient

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

    from un2clip.evidence.scores import Scores

EXPERIMENT = "un2clip"
PARENT_TAG = "un2clip.run"
DIGEST = 32  # letters of a hash that are kept as a data set's digest; MLflow has room for 36


def is_off() -> bool:
    """Whether UN2CLIP_TRACKING=off: then nothing is asked of the store, and nothing kept."""
    return os.environ.get("UN2CLIP_TRACKING", "").lower() == "off"


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
    # it would print the traceback of each error of the database, which is raised besides and said in a line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or local.local_uri()
    try:
        if not given and not os.access(".", os.W_OK):
            raise PermissionError("the current directory is read-only")  # SQLAlchemy would try for minutes
        refusals.check_address(uri)
        with impatient():
            local.ensure(uri, EXPERIMENT)
            with deferring() if local.file_of(uri) else nullcontext():  # a server may keep one waiting
                client = MlflowClient(tracking_uri=uri)
                experiment(client)
    except UserError:
        raise
    except Exception as error:
        raise_stop(error)
        raise refusals.unusable(uri, error) from None
    return client


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn whatever MLflow raises (its own errors, the network's, the object store's) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise_stop(error)
        raise UserError(f"MLflow refused: {reason(error)}") from None


@contextmanager
def alone(client: "MlflowClient") -> Iterator[None]:
    """Let one process at a time write to a store in a file, by a lock beside it; a server needs none."""
    path = client.tracking_uri.removeprefix(local.PREFIX)
    if path == client.tracking_uri:
        yield
        return
    with only_one(Path(f"{path}.lock"), f"waiting for another command, which writes to {path}", wait=True):
        yield


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


def stage_runs(client: "MlflowClient", parent_id: str) -> list["Run"]:
    """The runs of a parent's stages, the oldest first."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_id}'"
    return list(client.search_runs([experiment(client)], wanted, order_by=["attributes.start_time ASC"]))


def commit_of(client: "MlflowClient", run_id: str) -> str:
    """The commit of the code that a run had; "" outside of a checkout."""
    return str(client.get_run(run_id).data.tags.get("mlflow.source.git.commit", ""))


def duration_beside(client: "MlflowClient", run_id: str, stage: str) -> float | None:
    """How long the last finished run of a stage took, in seconds, below the same parent as a run; None without one."""
    parent_id = client.get_run(run_id).data.tags.get("mlflow.parentRunId", "")
    found = [
        run.data.metrics["duration_s"]
        for run in stage_runs(client, parent_id)
        if run.info.run_name == stage and run.info.status == "FINISHED" and "duration_s" in run.data.metrics
    ]
    return float(found[-1]) if found else None


def scores_tags(scores: "Scores") -> dict[str, str]:
    """What a run that measured is tagged with: the hash of what it found, and of the encoder it found it for."""
    place = f"{scores.benchmark}.{scores.role}"
    return {f"un2clip.scores.{place}": scores.sha256, f"un2clip.encoder.{place}": scores.encoder_sha256}


def model_tags(client: "MlflowClient", model_id: str) -> dict[str, str]:
    """Tags of a logged model; none where it was deleted, or never was ("")."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_logged_model(model_id).tags) if model_id else {}
    except MlflowException:
        return {}


def logged_models(client: "MlflowClient", name: str) -> list["LoggedModel"]:
    """All logged models of a name."""
    found, wanted, token = [], f"name = '{name}'", None
    while True:
        page = client.search_logged_models([experiment(client)], wanted, page_token=token)
        found += list(page)
        if not (token := page.token):
            return found


def log_model_scores(client: "MlflowClient", model_id: str, scores: Iterable["Scores"], run_id: str) -> None:
    """Log scores as metrics of a logged model, each with its data set; those that it has are not repeated."""
    from mlflow.entities import Metric

    known = {(each.key, each.value) for each in client.get_logged_model(model_id).metrics or ()}
    now = time.time_ns() // 1_000_000
    metrics = [
        Metric(f"{each.benchmark}/{each.role}", each.score, now, 0, model_id=model_id, dataset_name=each.benchmark,
               dataset_digest=each.data_sha256[:DIGEST])
        for each in scores
        if (f"{each.benchmark}/{each.role}", each.score) not in known
    ]  # fmt: skip
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def check_measured(client: "MlflowClient", scores: "Scores") -> None:
    """Hold scores against the runs that measured this encoder on this benchmark, where there are any.

    Raises:
        UserError: there are, and none of them found these outcomes: the file was written by something else.
    """
    (found, sha256), (encoder, encoder_sha256) = scores_tags(scores).items()

    def runs(wanted: str) -> list["Run"]:
        return list(client.search_runs([experiment(client)], wanted, max_results=1))

    if not runs(f"tags.`{found}` = '{sha256}'") and runs(f"tags.`{encoder}` = '{encoder_sha256}'"):
        raise UserError(
            f"{scores.benchmark} ({scores.role}) is not what any evaluation of encoder {encoder_sha256[:12]} found, by "
            "the hashes in their runs; run its evaluation again"
        )


def run_key() -> str:
    """What one pipeline run is: UN2CLIP_RUN if set, otherwise the configuration's content.

    Separate processes of one `dvc repro` find the same parent through it.
    """
    if given := os.environ.get("UN2CLIP_RUN"):
        return given
    content = b"".join(path.read_bytes() for path in map(Path, FILES) if path.is_file())
    return hashlib.sha256(content + "".join(git_tag().values()).encode()).hexdigest()[:12]


def git_tag() -> dict[str, str]:
    """The commit of the code, as MLflow's own tag; nothing outside of a checkout."""
    try:
        shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": shown.stdout.strip()}


def experiment(client: "MlflowClient") -> str:
    """Id of the experiment, made on first use.

    Raises:
        UserError: it was deleted.
    """

    def find() -> str:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found and found.lifecycle_stage == "deleted":
            raise refusals.deleted(EXPERIMENT, found.experiment_id, client.tracking_uri)
        return str(found.experiment_id) if found else ""

    if known := find():
        return known
    kept = local.artifacts(EXPERIMENT) if local.file_of(client.tracking_uri) else None
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=kept))
    except Exception:  # another process was quicker, or the store is at fault
        if known := find():
            return known
        raise


def parent_run(client: "MlflowClient") -> str:
    """Find or create the parent run. Of two processes that create one, the older run wins."""
    key, within = run_key(), experiment(client)

    def oldest_first() -> list[str]:
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        runs = client.search_runs([within], f"tags.`{PARENT_TAG}` = '{key}'", order_by=order)
        return [run.info.run_id for run in runs]

    if found := oldest_first():
        return found[0]
    created = client.create_run(within, tags={PARENT_TAG: key} | git_tag(), run_name=f"pipeline {key}")
    winner = oldest_first()[0]
    if winner != created.info.run_id:
        client.delete_run(created.info.run_id)
    return winner
