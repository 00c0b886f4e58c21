"""The compiled pipeline by Kubeflow's local runner: its scores, what it caches, and what it leaves after a failure."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from kfp import dsl, local
from mlflow import MlflowClient

from components.ingest.component import ingest
from components.shapes.component import shapes
from pipelines.compiling import read_params
from pipelines.run_local import find_outputs, table
from tests.same_numbers import assert_dvc_has
from un2clip.config import merge
from un2clip.datasets.shards import digest, read_index
from un2clip.evidence.scores import load_scores
from un2clip.tracking.store import PARENT_TAG

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/e2e/tiny.yaml"
RUN = """
import sys
from pathlib import Path
from pipelines.compiling import arguments, read_params
from pipelines.run_local import execute
package, overlay, folder, cache = map(Path, sys.argv[1:])
execute(package, folder, arguments(read_params(overlay)), cache=cache)
"""
UNCACHED = {"prerequisites", "promote", "finish"}


class Run:
    """One run of the pipeline, in a folder of its own, with an MLflow store of its own."""

    def __init__(self, folder: Path, overlay: dict[str, Any] | None = None, cluster: str = "", cache: str = "") -> None:
        folder.mkdir()
        self.folder, self.key = folder, folder.name
        self.store = f"sqlite:///{folder.parent / 'mlflow.db'}"
        package, numbers = ROOT / "pipelines/un2clip.yaml", folder / "overlay.yaml"
        numbers.write_text(yaml.safe_dump(merge(read_params(TINY), overlay or {})))
        environment = os.environ | {
            "UN2CLIP_TRACKING": "on",
            "UN2CLIP_RUN": self.key,
            "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        }
        if cluster:
            package = folder / "pipeline.yaml"
            (folder / "cluster.yaml").write_text(cluster)
            compiling = ["-m", "pipelines.un2clip", "--cluster", str(folder / "cluster.yaml"), "--to", str(package)]
            subprocess.run([sys.executable, *compiling], cwd=ROOT, env=environment, check=True)
        else:
            environment["MLFLOW_TRACKING_URI"] = self.store
        cached = folder.parent / (cache or self.key + "-cache")
        words = [sys.executable, "-c", RUN, package, numbers, folder / "root", cached]
        self.done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    @property
    def said(self) -> str:
        return self.done.stdout[-6000:] + self.done.stderr[-6000:]

    def executed(self) -> set[str]:
        """Tasks that ran to their end, and not out of the cache."""
        return {path.parent.name for path in self.folder.rglob("executor_output.json")}

    def artifacts(self, task: str, name: str) -> list[tuple[Path, dict[str, Any]]]:
        """Place and metadata of an artifact, of every task of that name."""
        outputs = [json.loads(path.read_text()) for path in sorted(self.folder.rglob(f"{task}/executor_output.json"))]
        listed = [each for output in outputs for each in output["artifacts"][name]["artifacts"]]
        return [(Path(each["uri"]), each["metadata"]) for each in listed]

    def parent(self) -> Any:
        """The run's parent in MLflow."""
        client = MlflowClient(self.store)
        (experiment,) = client.search_experiments(filter_string="name = 'un2clip'")
        (parent,) = client.search_runs([experiment.experiment_id], f"tags.`{PARENT_TAG}` = '{self.key}'")
        return parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Run, Run]:
    """The whole pipeline twice, with one cache."""
    folder = tmp_path_factory.mktemp("kfp")
    pair = Run(folder / "first", cache="cache"), Run(folder / "second", cache="cache")
    for run in pair:
        assert run.done.returncode == 0, run.said
    return pair


@pytest.mark.timeout(1800)
def test_dvc_and_kfp_give_the_same_scores(runs, tmp_path: Path) -> None:
    """Each scores file of the Kubeflow pipeline is byte for byte that of `dvc repro` with the same numbers."""
    outputs = find_outputs(runs[0].folder / "root")
    files = [
        outputs["report"],
        outputs["decision"],
        *(file for each in outputs["scores"].values() for file in each.values()),
    ]
    assert [line.split()[-1] for line in table(outputs).splitlines()] == files
    assert "passed" in json.loads(Path(outputs["decision"]).read_text())
    assert_dvc_has(outputs, tmp_path / "dvc")


@pytest.mark.timeout(1800)
def test_a_second_run_is_all_hits(runs) -> None:
    """With equal inputs only the tasks that look at, or act on, the world outside run again."""
    first, second = (run.executed() for run in runs)
    assert first >= UNCACHED | {"shapes", "ingest", "diffusion-loss", "evaluate", "reconstruct", "compare"}
    assert second == UNCACHED


def test_artifacts_describe_themselves(runs) -> None:
    """The metadata of every artifact that has some, against what lies there."""
    run = runs[0]
    ((shards, said),) = run.artifacts("ingest", "shards")
    assert said == {"samples": {"heldout": 48, "train": 192}, "read": 240, "rejected": {}, "sha256": digest(shards)}
    ((encoder, said),) = run.artifacts("finetune", "encoder")
    lineage = json.loads((encoder / "lineage.json").read_text())
    assert said["encoder_sha256"] == lineage["encoder_sha256"] and said["parents"]["shards"] == digest(shards)
    assert (said["method"], said["steps_done"], said["complete"]) == ("un2clip-noised-held", 3, True)
    evaluated = run.artifacts("evaluate", "scores") + run.artifacts("diffusion-loss", "scores")
    table = {
        name: value
        for task in ("evaluate", "diffusion-loss")
        for _, each in run.artifacts(task, "metrics")
        for name, value in each.items()
    }
    assert {said["benchmark"] for _, said in evaluated} == {"mmvp_vlm", "zeroshot", "segmentation", "diffusion_loss"}
    assert len(table) == 8
    for folder, said in evaluated:
        for role in ("reference", "tuned"):
            scores = load_scores(folder / f"{role}.json")
            assert said[role]["score"] == scores.score == table[f"{scores.benchmark} {role}"]
            assert (said[role]["n"], said[role]["data_sha256"]) == (scores.n, scores.data_sha256)
    ((_, said),) = run.artifacts("backbones", "backbones")
    assert said["clip_sha256"] == lineage["parents"]["clip"]
    ((_, said),) = run.artifacts("promote", "decision")
    assert said["passed"] is False and said["version"] == "1"


def test_the_report_and_the_grid_are_pages(runs) -> None:
    """Kubeflow's UI gets the report as it is, and the reconstructions with their picture inside."""
    ((report, _),), ((page, _),) = runs[0].artifacts("compare", "report"), runs[0].artifacts("compare", "page")
    assert page.read_bytes() == (report / "index.html").read_bytes()
    ((folder, _),), ((page, _),) = (runs[0].artifacts("reconstruct", name) for name in ("reconstructions", "page"))
    assert base64.b64encode((folder / "grid.png").read_bytes()).decode() in page.read_text()


def test_a_success_is_recorded(runs) -> None:
    """The run's parent in MLflow is finished and says so, for a run that is all hits too."""
    for run in runs:
        parent = run.parent()
        assert parent.info.status == "FINISHED"
        assert {k: v for k, v in parent.data.tags.items() if k != PARENT_TAG and k.startswith("un2clip.")} == {
            "un2clip.outcome": "succeeded"
        }


@pytest.mark.timeout(900)
def test_a_failure_is_recorded(tmp_path: Path) -> None:
    """A stage that fails ends the run; the exit handler still runs, and names the stage in MLflow."""
    run = Run(tmp_path / "failing", {"ingest": {"max_megapixels": 0.0001}})
    assert run.done.returncode != 0
    assert {"shapes", "finish"} <= run.executed() and not run.executed() & {"ingest", "finetune", "promote"}
    parent = run.parent()
    assert parent.info.status == "FAILED"
    assert parent.data.tags["un2clip.outcome"] == "failed" and parent.data.tags["un2clip.failed"] == "ingest"
    assert parent.data.tags["un2clip.message"].startswith("ingest: ")


@pytest.mark.timeout(900)
def test_nothing_is_made_where_a_prerequisite_is_missing(tmp_path: Path) -> None:
    """Without the MLflow that the run requires, the first task says so and no other but the last one runs."""
    run = Run(tmp_path / "lacking", cluster="arguments: {requires: [mlflow]}\n")
    assert run.done.returncode != 0
    assert "secret mlflow: MLFLOW_TRACKING_URI not set" in run.said
    assert run.executed() == {"finish"}


@pytest.mark.timeout(900)
def test_another_version_of_the_data_is_a_miss(tmp_path: Path) -> None:
    """The same inputs are a hit, another version of the data a miss; a folder that is named goes before the world."""
    params = read_params(TINY)

    @dsl.pipeline
    def data(folder: str, version: str):
        world = shapes(params=params["shapes"], seed=1)
        ingest(params=params["ingest"], folder=folder, version=version, images=world.outputs["images"])

    def run(number: int, folder: str, version: str) -> tuple[set[str], list[Path]]:
        root, cache = tmp_path / str(number), tmp_path / "cache"
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=str(root), enable_caching=True, cache_root=str(cache))
        data(folder=folder, version=version)
        executed = {path.parent.name for path in root.rglob("executor_output.json")}
        return executed, list(root.rglob("shards/index.json"))

    executed, _ = run(1, "", "a")
    assert executed == {"shapes", "ingest"}
    assert run(2, "", "a")[0] == set()
    assert run(3, "", "b")[0] == {"ingest"}
    (world,) = (tmp_path / "1").rglob("images/heldout")
    executed, (index,) = run(4, str(world), "b")
    assert executed == {"ingest"} and read_index(index.parent).read == 48


def test_the_hash_of_a_folder_is_the_one_that_dvc_has(tmp_path: Path) -> None:
    """The documentation's words for `data_version` print what DVC wrote, which changes with any file of the folder."""
    (command,) = set(re.findall(r"data_version=\$\((.+)\)", (ROOT / "pipelines/README.md").read_text()))
    (tmp_path / "data/photos").mkdir(parents=True)
    versions = []
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        for content in ("one", "other"):
            (tmp_path / "data/photos/0.tar").write_text(content)
            repo.add([str(tmp_path / "data/photos")])
            shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
            assert shown.strip() == yaml.safe_load((tmp_path / "data/photos.dvc").read_text())["outs"][0]["md5"]
            versions.append(shown.strip())
    assert versions[0] != versions[1] and all(version.endswith(".dir") for version in versions)
