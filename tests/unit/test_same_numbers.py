"""`make same-numbers`: what it compares, and what it says of a difference."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.same_numbers import ROOT, check_out, differences

FILES = ("scores/zeroshot/tuned.json", "models/encoder/open_clip_model.safetensors", "data/shards/train/00000.tar")
OTHERS = ("models/encoder/lineage.json", "reports/report/index.html", "scores/segmentation/segmentation.png")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    for name in (*FILES, *OTHERS):
        path = tmp_path / "before" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    return tmp_path / "before", tmp_path / "after"


def test_equal_folders_are_equal(sides: tuple[Path, Path]) -> None:
    assert differences(*sides) == ([], [], len(FILES))


@pytest.mark.parametrize("name", (*FILES, *OTHERS))
def test_one_byte_is_seen(sides: tuple[Path, Path], name: str) -> None:
    """A byte in scores, weights or shards counts; one in a page, a picture or a lineage is told and does not count."""
    (sides[1] / name).write_bytes(b"?" + (sides[1] / name).read_bytes()[1:])
    said = [f"{name}: differs"]
    assert differences(*sides) == ((said, [], len(FILES)) if name in FILES else ([], said, len(FILES)))


@pytest.mark.parametrize("side", [0, 1])
def test_a_file_that_only_one_side_has_is_seen(sides: tuple[Path, Path], side: int) -> None:
    (sides[1 - side] / FILES[0]).unlink()
    assert differences(*sides)[0] == [f"{FILES[0]}: only {'before' if side == 0 else 'after'}"]


def test_a_revision_is_taken_from_git_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project has no git history")
    tree = check_out("HEAD", tmp_path / "tree")
    shown = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, check=True).stdout
    assert (tree / "params.yaml").read_bytes() == shown and (tree / "dvc.yaml").is_file()
    with pytest.raises(SystemExit, match="git knows no revision 'nothing-like-it'"):
        check_out("nothing-like-it", tmp_path / "none")


def test_make_asks_for_the_revision() -> None:
    """Without REV the command says how to give it, before anything runs."""
    environment = {name: value for name, value in os.environ.items() if name != "REV"}
    done = subprocess.run(["make", "-s", "same-numbers"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and "make same-numbers REV=main~3" in done.stdout
