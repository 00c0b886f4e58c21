"""MLflow runs, against a real sqlite store."""

import contextlib
import hashlib
import json
import sqlite3
import time

import pytest

from un2clip import tracking
from un2clip.datasets.shards import digest
from un2clip.errors import UserError
from un2clip.evidence.scores import Item, Scores
from un2clip.tracking.store import connect, run_key

TAR = b"\0" * 10240


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder whose mlflow.db is made once (2 s)."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def client(store, monkeypatch):
    """A client of the store, which is also what stages find."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("UN2CLIP_TRACKING", raising=False)
    monkeypatch.chdir(store)
    return connect()


def runs(client, key):
    """(parent, children in order) of one pipeline run."""
    experiment = client.get_experiment_by_name("un2clip").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`un2clip.run` = '{key}'")
    wanted = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC"])


def soon(holds, seconds=20):
    """Whether something becomes true within a few seconds: curves are sent by a thread."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    return holds()


def write_shards(folder):
    """The smallest data set `ingest` could have written."""
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "0.tar").write_bytes(TAR)
    shard = {"name": "0.tar", "samples": 0, "bytes": len(TAR), "sha256": hashlib.sha256(TAR).hexdigest()}
    index = {"splits": {"train": [shard]}, "rejected": {}, "captions": {}, "damaged_tars": {}}
    (folder / "index.json").write_text(json.dumps(index))


def test_one_parent_and_a_nested_run_a_stage(client, tmp_path, monkeypatch):
    """Two stages of one key share a parent; params, inputs, curves, scores, pictures and digests arrive."""
    monkeypatch.setenv("UN2CLIP_RUN", "job-1")
    shards, encoder, scores = tmp_path / "shards", tmp_path / "encoder", tmp_path / "scores"
    write_shards(shards)
    folders = {"shards": shards, "encoder": encoder}
    with tracking.stage_run(
        "finetune", params={"lr": 1e-5, "phase": {"steps": 3}}, names={"method": "un2clip", "seed": 7} | folders
    ):
        tracking.log_metrics(1, {"loss": 0.5})
        encoder.mkdir()
        (encoder / "history.json").write_text(json.dumps([{"step": s, "loss": 1 / s} for s in range(2, 1502)]))
        (encoder / "open_clip_model.safetensors").write_bytes(b"weights")
    names = {"benchmark": "zeroshot", "encoder": encoder, "scores": scores}
    with tracking.stage_run("evaluate", params={}, names=names):
        Scores(benchmark="zeroshot", role="tuned", method="un2clip", unit="%", protocol="",
               data_sha256="d", encoder_sha256="e",
               items=(Item(id="0", type="a", value=1.0), Item(id="1", type="a", value=0.0)),
        ).save(scores / "tuned.json")  # fmt: skip
        (scores / "plot.png").write_bytes(b"png")

    parent, (finetune, evaluate) = runs(client, "job-1")
    assert [run.info.status for run in (parent, finetune, evaluate)] == ["FINISHED"] * 3
    assert [run.info.run_name for run in (parent, finetune, evaluate)] == [
        "pipeline job-1", "finetune un2clip", "evaluate zeroshot"
    ]  # fmt: skip
    expected = {"lr": "1e-05", "phase.steps": "3", "seed": "7", "method": "un2clip", "shards": str(shards)}
    assert finetune.data.params.items() >= expected.items()
    assert parent.data.params == {"finetune.lr": "1e-05", "finetune.phase.steps": "3"}
    curve = client.get_metric_history(finetune.info.run_id, "loss")
    assert {(point.step, point.value) for point in curve} == {(1, 0.5)} | {(s, 1 / s) for s in range(2, 1502)}
    assert len(curve) == 1501
    (data,) = [given.dataset for given in finetune.inputs.dataset_inputs]
    assert (data.name, data.digest) == ("shards", digest(shards)[:32])
    for run in (evaluate, parent):
        assert run.data.metrics.items() >= {"zeroshot/tuned": 50.0, "zeroshot/n": 2.0}.items()
    kept = {file.path for file in client.list_artifacts(evaluate.info.run_id, "scores")}
    assert kept == {"scores/tuned.json", "scores/plot.png"}
    assert "loss" not in evaluate.data.metrics, "the encoder's history is an input here"
    assert client.list_artifacts(evaluate.info.run_id, "encoder") == []
    assert [file.path for file in client.list_artifacts(finetune.info.run_id, "encoder")] == ["encoder/history.json"]
    assert finetune.data.metrics["duration_s"] >= 0


def test_live_points_are_not_sent_twice(client, tmp_path, monkeypatch):
    """A curve that was shown while training is the curve afterwards, though history.json repeats it."""
    monkeypatch.setenv("UN2CLIP_RUN", "live")
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.05)
    with tracking.stage_run("finetune", params={}, names={"encoder": tmp_path}):
        for step in range(3):
            tracking.log_metrics(step, {"step": step, "loss": float(step)})
        run_id = tracking.active_run()
        assert soon(lambda: len(client.get_metric_history(run_id, "loss")) == 3), "the points arrive while it runs"
        (tmp_path / "history.json").write_text(json.dumps([{"step": step, "loss": float(step)} for step in range(4)]))
    assert sorted(point.step for point in client.get_metric_history(run_id, "loss")) == [0, 1, 2, 3]


def test_a_failed_stage_is_a_failed_run(client, tmp_path, monkeypatch):
    """The exception is the stage's own, run and parent say FAILED; a later success mends the parent."""
    monkeypatch.setenv("UN2CLIP_RUN", "job-2")
    address = "https://me:p@ss@host/a?token=t0k"
    error = ZeroDivisionError(f"the stage's own, at {address}")
    params = {"weights": address}
    with pytest.raises(ZeroDivisionError) as caught, tracking.stage_run("shapes", params=params, names={}):
        raise error
    assert caught.value is error
    parent, (child,) = runs(client, "job-2")
    said = f"{child.data} {parent.data}"
    assert "https://***@host/a?token=***" in said and not any(each in said for each in ("p@ss", "ss@host", "t0k"))
    assert (parent.info.status, child.info.status) == ("FAILED", "FAILED")
    assert tracking.active_run() is None
    with tracking.stage_run("shapes", params={}, names={}):
        assert runs(client, "job-2")[0].info.status == "RUNNING"
    parent, children = runs(client, "job-2")
    assert (parent.info.status, [run.info.status for run in children]) == ("FINISHED", ["FAILED", "FINISHED"])


def test_without_a_given_key_the_configuration_is_the_key(tmp_path, monkeypatch):
    """Processes of one configuration share a parent, another configuration has its own, whichever file differs."""
    monkeypatch.delenv("UN2CLIP_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    keys = []
    for text in ("seed: 1", "seed: 1", "seed: 2"):
        (tmp_path / "params.yaml").write_text(text)
        keys.append(run_key())
    for name in ("world.yaml", "download.yaml"):
        (tmp_path / name).write_text("a: 1")
        keys.append(run_key())
    assert keys[0] == keys[1] and len(set(keys)) == 4
    monkeypatch.setenv("UN2CLIP_RUN", "given")
    assert run_key() == "given"


def test_a_store_that_breaks_later_does_not_stop_the_stage(client, tmp_path, monkeypatch, capsys):
    """Whatever MLflow refuses after the start (here a metric's name) is a line on stderr."""
    monkeypatch.setenv("UN2CLIP_RUN", "job-3")
    with tracking.stage_run("finetune", params={"text": "x" * 9000}, names={"encoder": tmp_path}):
        tracking.log_metrics(0, {"not a name?!": 1.0})
        (tmp_path / "history.json").write_text("not JSON")
        (tmp_path / "report.html").write_text("<p>")
    said = capsys.readouterr().err
    assert "did not take curves" in said and "history.json" in said
    _, (child,) = runs(client, "job-3")
    assert child.info.status == "FINISHED" and len(child.data.params["text"]) == 6000
    assert "encoder/report.html" in [file.path for file in client.list_artifacts(child.info.run_id, "encoder")]


def test_an_error_of_the_database_is_a_line_and_no_traceback(empty_store, tmp_path, monkeypatch, capfd):
    """Here a table goes; a file that another process keeps locked is the same kind of error to MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("UN2CLIP_TRACKING", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    with tracking.stage_run("ingest", params={}, names={}):
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("DROP TABLE metrics")
    said = capfd.readouterr().err
    assert "un2clip: MLflow is away at the end of the stage (OperationalError: no such table: metrics)" in said
    assert "Traceback" not in said


def test_a_store_out_of_reach_stops_before_any_work(tmp_path, monkeypatch):
    """A server that is down is one line within seconds, without the password, and the stage does not begin."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.delenv("UN2CLIP_TRACKING", raising=False)
    began, started = [], time.monotonic()
    with pytest.raises(UserError, match="UN2CLIP_TRACKING=off") as caught:
        with tracking.stage_run("finetune", params={}, names={}):
            began.append(True)
    assert not began and time.monotonic() - started < 15
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_off_leaves_no_trace(tmp_path, monkeypatch):
    """UN2CLIP_TRACKING=off: no file, no run, live curves go nowhere."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    with tracking.stage_run("finetune", params={}, names={"encoder": tmp_path}):
        assert tracking.active_run() is None
        tracking.log_metrics(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
