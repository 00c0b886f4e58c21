"""How a run ended, on its parent in a real MLflow store: what stages could not close, and what must not be touched."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from un2clip.cluster.outcome import LETTERS, finish
from un2clip.tracking import store


@pytest.fixture
def parent(tmp_path: Path, monkeypatch) -> str:
    """A run of three stages: one done, one that a retry saved, and one whose pod was killed."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "run-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
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


def test_a_run_without_a_stage_has_an_outcome(tmp_path: Path, monkeypatch) -> None:
    """A run that its prerequisites refused gets a parent, so that it is seen."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("UN2CLIP_RUN", "run-2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    finish("FAILED", "Task prerequisites failed.")
    (experiment,) = MlflowClient().search_experiments(filter_string="name = 'un2clip'")
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["un2clip.message"]) == ("FAILED", "Task prerequisites failed.")
    assert "un2clip.failed" not in run.data.tags


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
