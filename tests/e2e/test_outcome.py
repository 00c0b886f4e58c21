"""How a run ended, on its parent in a real MLflow store: what stages could not close, and what must not be touched."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient

from un2clip.cluster.outcome import LETTERS, finish, judge, refused
from un2clip.errors import Stopped, UserError
from un2clip.tracking import stage_run, store


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch, empty_store: bytes) -> None:
    """A store of the test's own, which stages and tasks find, and a run's id."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "run-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def parent(tracked) -> str:
    """A run of three stages: one done, one that a retry saved, and one whose pod was killed."""
    client = store.connect()
    parent_id = store.parent_run(client)
    experiment = client.get_run(parent_id).info.experiment_id
    stages = [
        ("ingest", "FINISHED"),
        ("finetune", "FAILED"),
        ("finetune", "FINISHED"),
        ("evaluate zeroshot", "RUNNING"),
    ]
    for at, (name, status) in enumerate(stages, start=1):
        run = client.create_run(experiment, at, {"mlflow.parentRunId": parent_id}, name)
        if status != "RUNNING":
            client.set_terminated(run.info.run_id, status)
    return parent_id


def ended(parent_id: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """The parent's state and our tags, and the state of the latest run of each stage."""
    client = store.connect()
    run = client.get_run(parent_id)
    ours = {
        name.removeprefix("un2clip."): value for name, value in run.data.tags.items() if name.startswith("un2clip.")
    }
    del ours["run"]
    return (
        run.info.status,
        ours,
        {each.info.run_name: each.info.status for each in store.stage_runs(client, parent_id)},
    )


@pytest.mark.parametrize(
    ("state", "status", "outcome"),
    [
        ("COMPLETE", "FINISHED", "succeeded"),
        ("CACHED", "FINISHED", "succeeded"),
        ("SUCCEEDED", "FINISHED", "succeeded"),
        ("FAILED", "FAILED", "failed"),
        ("CANCELED", "KILLED", "cancelled"),
        ("CANCELLED", "KILLED", "cancelled"),
        # the stages decide: one that is still running here was killed with its run
        ("RUNNING", "KILLED", "cancelled"),
        ("UNKNOWN", "KILLED", "cancelled"),
        ("NEW", "KILLED", "cancelled"),
    ],
)
def test_every_word_of_kubeflow_is_an_outcome(parent, state: str, status: str, outcome: str) -> None:
    """A backend's words and the local runner's are recorded as what they mean."""
    finish(state, "")
    found, tags, _ = ended(parent)
    assert (found, tags["outcome"]) == (status, outcome)
    assert tags.get("failed") == (None if outcome == "succeeded" else "evaluate zeroshot")


@pytest.mark.parametrize(
    ("stages", "status"),
    [
        ({}, "KILLED"),
        ({"ingest": "FINISHED"}, "KILLED"),  # terminated between two stages
        ({"ingest": "FINISHED", "finetune": "RUNNING"}, "KILLED"),
        ({"finetune": "KILLED"}, "KILLED"),
        ({"ingest": "FINISHED", "finetune": "FAILED"}, "FAILED"),
        ({"finetune": "FAILED", "evaluate zeroshot": "RUNNING"}, "FAILED"),
        ({"promote": "FAILED"}, "FAILED"),
        ({"promote": "FINISHED"}, "FINISHED"),  # all others came from the cache
    ],
)
def test_the_stages_judge_a_run_whose_word_says_nothing(stages: dict[str, str], status: str) -> None:
    """RUNNING and UNKNOWN: the last stage's success is the run's, a failed stage a failure, the rest was stopped."""
    assert judge(stages) == status


def test_the_message_is_the_failed_stages_own(parent) -> None:
    """Kubeflow hands over an empty message, so it is read from the run of each stage that failed."""
    with pytest.raises(UserError), stage_run("finetune", params={}, names={"method": "nosuch"}):
        raise UserError("unknown method 'nosuch'; known: un2clip, at http://user:password@hub")
    with pytest.raises(OSError), stage_run("latents", params={}, names={}):
        raise OSError("no space left")
    finish("FAILED", "")
    status, tags, _ = ended(parent)
    assert status == "FAILED" and tags["failed"] == "evaluate zeroshot, finetune nosuch, latents"
    said = (
        "finetune nosuch: unknown method 'nosuch'; known: un2clip, at http://***@hub; latents: OSError: no space left"
    )
    assert tags["message"] == said


def test_a_stage_that_a_signal_stopped_is_killed(parent) -> None:
    """A terminated run of which a stage could still say so is cancelled, and not failed."""
    with pytest.raises(Stopped), stage_run("finetune", params={}, names={"method": "un2clip"}):
        raise Stopped("stopped by a signal after 3 of 9 steps")
    finish("RUNNING", "")
    status, tags, stages = ended(parent)
    assert (status, tags["outcome"], stages["finetune un2clip"]) == ("KILLED", "cancelled", "KILLED")
    assert tags["message"] == "finetune un2clip: stopped by a signal after 3 of 9 steps"


@pytest.mark.parametrize(("state", "status"), [("FAILED", "FAILED"), ("CANCELLED", "KILLED")])
def test_what_a_killed_pod_left_open_is_closed(parent, state: str, status: str) -> None:
    """A failed or cancelled run names the stage that did not end, and no run of it counts as running for ever."""
    finish(state, "pod was evicted")
    assert ended(parent) == (
        status,
        {"outcome": state.lower(), "failed": "evaluate zeroshot", "message": "pod was evicted"},
        {"ingest": "FINISHED", "finetune": "FINISHED", "evaluate zeroshot": "KILLED"},
    )


def test_a_success_touches_no_stage(parent) -> None:
    """A run that succeeded is finished; a stage that another task still closes is left to it."""
    finish("SUCCEEDED", "")
    status, tags, stages = ended(parent)
    assert (status, tags, stages["evaluate zeroshot"]) == ("FINISHED", {"outcome": "succeeded"}, "RUNNING")


def test_a_long_message_is_cut(parent) -> None:
    """MLflow refuses long tags, so of a message its beginning is kept."""
    finish("FAILED", "x" * 100_000)
    assert ended(parent)[1]["message"] == "x" * LETTERS


def test_a_run_without_a_stage_has_an_outcome(tracked) -> None:
    """A run that its prerequisites refused gets a parent, so that it is seen."""
    finish("FAILED", "Task prerequisites failed.")
    (experiment,) = MlflowClient().search_experiments(filter_string="name = 'un2clip'")
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["un2clip.message"]) == ("FAILED", "Task prerequisites failed.")
    assert "un2clip.failed" not in run.data.tags


def test_a_refused_run_says_why(tracked) -> None:
    """What the first task found is the message, as no stage has a run that could say it."""
    refused("secret hub: HF_TOKEN not set; make the Secret")
    finish("FAILED", "")
    client = store.connect()
    run = client.get_run(store.parent_run(client))
    assert run.data.tags["un2clip.message"] == "secret hub: HF_TOKEN not set; make the Secret"


def test_its_own_trouble_is_one_line(monkeypatch, capsys) -> None:
    """With a store that cannot be reached the run's end is only printed: the exit handler never fails."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    finish("FAILED", "why")
    shown = capsys.readouterr()
    assert shown.out == "the run ended: FAILED: why\n"
    assert shown.err.startswith("un2clip: MLflow did not take the outcome: ") and shown.err.count("\n") == 1


def test_outside_of_a_cluster_nothing_is_freed(monkeypatch, tmp_path: Path, capsys) -> None:
    """Where several nodes were to be freed and no cluster is around, that is one line, and the run's end is said."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "off")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    finish("FAILED", "", nodes=2, volume=str(tmp_path))
    shown = capsys.readouterr()
    assert shown.out == "the run ended: FAILED\n"
    assert shown.err.startswith("un2clip: nothing was freed: ") and shown.err.count("\n") == 1


@pytest.fixture
def heard(monkeypatch) -> Iterator[list[dict[str, str]]]:
    """What a webhook of our own was sent; its address has a secret in it."""
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/SECRET" else 403)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("UN2CLIP_WEBHOOK", f"http://127.0.0.1:{server.server_address[1]}/SECRET\n")
    yield told
    server.shutdown()
    server.server_close()


def decide_in_a_run(parent_id: str, *, passed: bool) -> None:
    """What `promote` leaves: its run, finished, with the decision among the evidence."""
    client = store.connect()
    experiment = client.get_run(parent_id).info.experiment_id
    run = client.create_run(experiment, 9, {"mlflow.parentRunId": parent_id}, "promote")
    rule = {"benchmark": "zeroshot", "gain_above": 0.0, "data_sha256": ""}
    finding = {"rule": rule, "passed": passed, "sentence": "zeroshot gained 3 points."}
    content = {"passed": passed, "rules": [finding], "champion": {}, "challenger": {}}
    client.log_text(run.info.run_id, json.dumps(content), "evidence/decision.json")
    client.set_terminated(run.info.run_id, "FINISHED")


@pytest.mark.parametrize(
    ("state", "passed", "said"),
    [
        ("FAILED", None, "un2clip run run-1 failed in evaluate zeroshot: a message"),
        ("COMPLETE", True, "un2clip run run-1: a challenger passed the gate.\nzeroshot gained 3 points."),
        ("COMPLETE", False, None),  # refused, and a run whose challenger nobody has, are no news
        ("COMPLETE", None, None),
        ("CANCELED", None, None),  # whoever did that knows
    ],
)
def test_the_webhook_hears_of_failures_and_of_passes(parent, heard, capsys, state, passed, said) -> None:
    """With the stages and their words, or the gate's sentences; nothing that is printed has the address."""
    if passed is not None:
        decide_in_a_run(parent, passed=passed)
    finish(state, "a message")
    assert heard == ([{"text": said}] if said else [])
    printed = capsys.readouterr()
    assert "SECRET" not in printed.out + printed.err and "webhook" not in printed.err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9/SECRET", "the webhook was not told: URLError"),
        ("file:///SECRET", "the webhook was not told: UN2CLIP_WEBHOOK is no address of http"),
        ("http://[SECRET", "the webhook was not told: "),
        ("", None),
    ],
)
def test_a_webhook_that_does_not_answer_is_a_line_without_address(parent, monkeypatch, capsys, address, said) -> None:
    """The outcome is recorded all the same."""
    monkeypatch.setenv("UN2CLIP_WEBHOOK", address)
    finish("FAILED", "a message")
    error = capsys.readouterr().err
    assert "SECRET" not in error and (said in error if said else "webhook" not in error)
    assert ended(parent)[0] == "FAILED"


def test_a_webhook_that_refuses_and_one_without_a_store(tmp_path, heard, monkeypatch, capsys) -> None:
    """Its status is said; and with tracking off Kubeflow's own message is what is told."""
    import os

    monkeypatch.setenv("UN2CLIP_TRACKING", "off")
    monkeypatch.setenv("UN2CLIP_RUN", "run-2")
    finish("FAILED", "a message")
    assert heard == [{"text": "un2clip run run-2 failed: a message"}]
    monkeypatch.setenv("UN2CLIP_WEBHOOK", os.environ["UN2CLIP_WEBHOOK"].strip() + "?SECRET")
    finish("FAILED", "a message")
    assert "the webhook was not told: it answered 403" in capsys.readouterr().err
