"""The compiled pipeline in containers, tracked by an MLflow server; tests/docker_e2e.sh makes both and calls this."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.same_numbers import ROOT, TINY, assert_dvc_has

SERVER = os.environ.get("UN2CLIP_DOCKER_MLFLOW", "")
pytestmark = pytest.mark.skipif(not SERVER, reason="wants a Docker daemon and the image: `make docker-e2e`")


@pytest.mark.timeout(1800)
def test_containers_and_dvc_give_the_same_scores(tmp_path: Path) -> None:
    """Each scores file made in containers is byte for byte that of `dvc repro`; MLflow has the run and the encoder."""
    words = ["-m", "pipelines.run_local", "--runner", "docker", "--params", str(TINY), "--root", str(tmp_path / "runs")]
    tracking = {"MLFLOW_TRACKING_URI": SERVER, "UN2CLIP_TRACKING": "on", "UN2CLIP_RUN": "docker-e2e"}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | tracking, check=True)
    (listed,) = (tmp_path / "runs").glob("*/outputs.json")
    assert_dvc_has(json.loads(listed.read_text()), tmp_path / "dvc")

    client = MlflowClient(SERVER)
    (experiment,) = (each.experiment_id for each in client.search_experiments() if each.name == "un2clip")
    runs = client.search_runs([experiment])
    (parent,) = (run for run in runs if run.data.tags.get("un2clip.run") == "docker-e2e")
    stages = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(stages) == len(runs) - 1 and {run.info.status for run in runs} == {"FINISHED"}
    assert client.get_model_version_by_alias("un2clip", "challenger").version == "1"
