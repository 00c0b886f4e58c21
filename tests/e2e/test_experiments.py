"""`dvc exp run` with numbers of both files: what it writes, what runs with them, and what DVC notices afterwards."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.same_numbers import ROOT, write_tiny_params


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """The graph with tiny numbers, in a git repository of its own, which is the working directory."""
    write_tiny_params(ROOT, tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(variable, "somebody@example.org")
    run("git init --quiet")
    run("dvc init --quiet")
    run("git add --all")
    run("git commit --quiet -m numbers")
    return tmp_path


def run(line: str) -> str:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_numbers_of_both_files_reach_the_stage_and_dvc_notices_them(repository: Path) -> None:
    """An overlay's flags are written where each key stands; a later change is one of the stage's."""
    (repository / "overlay.yaml").write_text("seed: 11\nshapes: {train_scenes: 17, captions: {wrong: 1.0e-6}}\n")
    before = {name: yaml.safe_load((repository / name).read_text()) for name in ("params.yaml", "world.yaml")}
    run("python -m un2clip flags overlay.yaml | xargs -r dvc exp run shapes")
    after = {name: yaml.safe_load((repository / name).read_text()) for name in before}
    assert after["params.yaml"] == before["params.yaml"] | {"seed": 11}
    assert after["world.yaml"]["backbones"] == before["world.yaml"]["backbones"]
    section = after["world.yaml"]["shapes"]
    assert section["train_scenes"] == 17 and float(section["captions"]["wrong"]) == 1e-6
    assert rendered(repository) == 17

    assert json.loads(run("dvc status --json shapes")) == {}
    run("dvc exp run -S world.yaml:shapes.train_scenes=18 shapes")
    assert rendered(repository) == 18
    world = repository / "world.yaml"
    world.write_text(world.read_text().replace("train_scenes: 18", "train_scenes: 19"))
    assert "world.yaml" in json.dumps(json.loads(run("dvc status --json shapes"))["shapes"])


def rendered(repository: Path) -> int:
    """How many captioned scenes the training split has."""
    names = [name for path in (repository / "data/world/images/train").glob("*.tar") for name in tar_names(path)]
    return sum(name.endswith(".txt") for name in names)


def tar_names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()
