"""Do two revisions give the same numbers? Both run a small pipeline on this machine, and every byte is compared.

    make same-numbers REV=main~3

Each revision runs its own dvc.yaml by its own code, with its own numbers under its own tests/e2e/tiny.yaml. What
counts are scores files, weights and shards; pages, pictures and lineages may tell of a name that has changed, so they
are listed and do not count.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

from un2clip.config import FILES, merge, read_files, read_params, read_yaml, split

ROOT = Path(__file__).parents[1]
TINY = Path("tests/e2e/tiny.yaml")
#: Patterns of what counts: results of stages that hold nothing but numbers.
COUNTS = ("scores/*/*.json", "models/**/*.safetensors", "data/**/*.safetensors", "data/**/*.tar", "data/world/**/*")
MADE = ("data", "models", "scores", "reports")


def run_pipeline(tree: Path, folder: Path, **environment: str) -> None:
    """`dvc repro` in a new folder: graph, numbers and code are those of `tree`.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    folder.mkdir()
    (folder / "dvc.yaml").write_bytes((tree / "dvc.yaml").read_bytes())
    write_tiny_params(tree, folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(tree / "src")} | environment
    for words in (["init", "--no-scm", "--quiet"], ["repro"]):
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{tree}: dvc {' '.join(words)} failed\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def assert_dvc_has(outputs: dict[str, Any], folder: Path) -> None:
    """`dvc repro` in a new folder gives, byte for byte, each scores file of a toy run of the compiled pipeline.

    Args:
        outputs: what `pipelines.run_local` says of that run.
        folder: where `dvc repro` runs, with an MLflow store of its own.
    """
    run_pipeline(ROOT, folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}", UN2CLIP_TRACKING="on")
    names = {*read_params(ROOT / "params.yaml", [ROOT / TINY])["benchmarks"], "diffusion_loss"}
    assert set(outputs["scores"]) == {each.name for each in (folder / "scores").iterdir()} == names
    for name, files in outputs["scores"].items():
        wanted = {role: (folder / "scores" / name / f"{role}.json").read_bytes() for role in ("reference", "tuned")}
        assert {role: Path(file).read_bytes() for role, file in files.items()} == wanted, name


def write_tiny_params(tree: Path, folder: Path) -> None:
    """The files of numbers that `tree` has, each with its part of the tree's own tests/e2e/tiny.yaml laid over it."""
    files = read_files(tree / "params.yaml")
    for name, part in split(read_yaml(tree / TINY), files).items():
        (folder / name).write_text(yaml.safe_dump(merge(files[name], part), sort_keys=False))


def check_out(revision: str, folder: Path) -> Path:
    """The files of a revision, in a new folder."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        sys.exit(f"git knows no revision {revision!r}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
        tar.extractall(folder, **safely)
    return folder


def snapshot(folder: Path) -> Path:
    """What a run reads of the working tree, copied: an edit meanwhile changes nothing."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", *FILES, str(TINY)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def differences(before: Path, after: Path) -> tuple[list[str], list[str], int]:
    """Compare two folders in which the pipeline has run.

    Returns:
        What differs and counts, what differs and does not, and how many files that count were compared.
    """
    counting = {path.relative_to(side) for side in (before, after) for each in COUNTS for path in side.glob(each)}
    found = {
        path.relative_to(side)
        for side in (before, after)
        for name in MADE
        for path in (side / name).rglob("*")
        if path.is_file()
    }
    counted: list[str] = []
    others: list[str] = []
    for name in sorted(found):
        sides = [side for side in (before, after) if (side / name).is_file()]
        if len(sides) == 1:
            said = f"{name}: only {'before' if sides == [before] else 'after'}"
        elif (before / name).read_bytes() != (after / name).read_bytes():
            said = f"{name}: differs"
        else:
            continue
        (counted if name in counting else others).append(said)
    return counted, others, len(counting & found)


def main() -> None:
    """Run from the command line; exit status 1 where the numbers differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_numbers", description=__doc__.partition("\n")[0])
    parser.add_argument("revision", help="a commit, tag or branch to compare the working tree with")
    revision = parser.parse_args().revision
    quiet = {"UN2CLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as made:
        trees = {"before": check_out(revision, Path(made) / "tree"), "after": snapshot(Path(made) / "now")}
        for side, tree in trees.items():
            print(f"{side}: {revision if side == 'before' else 'the working tree'}", flush=True)
            run_pipeline(tree, Path(made) / side, **quiet)
        counted, others, compared = differences(Path(made) / "before", Path(made) / "after")
    for name, listed in (("does not count", others), ("COUNTS", counted)):
        print("".join(f"{name}  {said}\n" for said in listed), end="")
    assert compared, "a run leaves scores and weights"
    print(f"{compared} files of numbers compared: {f'{len(counted)} differ' if counted else 'all equal'}")
    sys.exit(bool(counted))


if __name__ == "__main__":
    main()
