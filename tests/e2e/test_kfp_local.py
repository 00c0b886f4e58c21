"""The whole pipeline, twice, at toy size: the compiled YAML and `dvc repro` give the same scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.same_numbers import ROOT, run_pipeline
from un2clip.config import read_params

TINY = ROOT / "tests" / "e2e" / "tiny.yaml"


def call(words: list[str], cwd: Path, store: Path) -> str:
    """Run a command with this interpreter first on PATH, and with an MLflow store of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{store}", "UN2CLIP_TRACKING": "on"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def run_dvc(folder: Path) -> dict[str, dict[str, Path]]:
    """`dvc repro` of dvc.yaml with the toy numbers, in a folder of its own: benchmark -> role -> scores file."""
    run_pipeline(ROOT, folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}", UN2CLIP_TRACKING="on")
    return {each.name: {file.stem: file for file in each.glob("*.json")} for each in (folder / "scores").iterdir()}


def run_kfp(folder: Path) -> dict[str, dict[str, Path]]:
    """`python -m pipelines.run_local` with the toy numbers: benchmark -> role -> scores file."""
    folder.mkdir()
    words = [sys.executable, "-m", "pipelines.run_local", "--params", str(TINY), "--root", str(folder / "runs")]
    shown = call(words, ROOT, folder / "mlflow.db")
    (listed,) = (folder / "runs").glob("*/outputs.json")
    outputs = json.loads(listed.read_text())
    assert Path(outputs["report"]).is_file() and outputs["report"] in shown
    assert "passed" in json.loads(Path(outputs["decision"]).read_text())
    return {name: {role: Path(file) for role, file in files.items()} for name, files in outputs["scores"].items()}


@pytest.mark.timeout(900)
def test_dvc_and_kfp_give_the_same_scores(tmp_path: Path) -> None:
    """Each scores file of the Kubeflow pipeline is byte for byte that of `dvc repro` with the same numbers."""
    kfp, dvc = run_kfp(tmp_path / "kfp"), run_dvc(tmp_path / "dvc")
    benchmarks = {*read_params(ROOT / "params.yaml")["benchmarks"], "diffusion_loss"}
    assert {name: set(files) for name, files in kfp.items()} == {name: {"reference", "tuned"} for name in benchmarks}
    assert {name: set(files) for name, files in dvc.items()} == {name: set(files) for name, files in kfp.items()}
    for name, files in kfp.items():
        for role, file in files.items():
            assert file.read_bytes() == dvc[name][role].read_bytes(), f"{name} {role}"
