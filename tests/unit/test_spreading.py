"""Batches of a benchmark, measured apart: the same scores, and nothing twice after a kill."""

import pickle
import re
import shutil
from pathlib import Path

import pytest

from tests.sharing import shared
from tests.unit.test_retrieval import captioned  # noqa: F401, a fixture
from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.evaluation.spreading import Kept, Unmeasured, close, load
from un2clip.models.clip import load_clip


@pytest.mark.parametrize("name", ["mmvp_vlm", "zeroshot", "segmentation", "probe", "detail", "retrieval"])
def test_seven_shares_find_the_same(tiny, tmp_path, request, name: str) -> None:
    """Each benchmark of an encoder, its batches read in seven shares, the last first, against one process."""
    clip = load_clip(tiny.backbones / "clip")
    params = build(Evaluate, tiny.params["evaluate"] | {"batch_size": 5}, "evaluate")
    folder = tiny.benchmarks / name
    if name == "retrieval":
        folder = request.getfixturevalue("captioned")
    elif name == "detail":
        folder = tmp_path / "detail"
        shutil.copytree(tiny.benchmarks / "mmvp_vlm", folder / "laptop")
    shared(lambda spread: get_benchmark(name, "clip").run(clip, folder, params, clip, spread), tmp_path / "kept")


def read(batch: int) -> dict[str, list[int]]:
    return {"batch": [batch]}


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path: Path, capsys) -> None:
    """Whatever the number of shares then: of ten batches the three that had ended stay; the bar has the seven left."""
    asked: list[int] = []

    def measure(found: dict[str, list[int]]) -> tuple[int, str]:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.extend(found["batch"])
        return found["batch"][0], "x"

    with pytest.raises(KeyboardInterrupt):
        list(Kept(folder=tmp_path, share=1, of=2)("x", range(10), read, measure))
    assert asked == [1, 3, 5]
    (tmp_path / "0/7.partial").write_bytes(b"half")

    def go_on(found: dict[str, list[int]]) -> tuple[int, str]:
        asked.extend(found["batch"])
        return found["batch"][0], "x"

    assert list(Kept(folder=tmp_path)("x", range(10), read, go_on)) == [(batch, "x") for batch in range(10)]
    assert sorted(asked) == list(range(10))
    assert "| 7/7 [" in capsys.readouterr().err
    assert list(Kept(folder=tmp_path)("x", range(10), read, measure)) == [(batch, "x") for batch in range(10)]


def test_a_loop_without_batches_is_whole(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured) as missing:
        Kept(folder=tmp_path, of=0)("x", (), read, str)
    missing.value.args[0].mkdir()
    close(*missing.value.args)
    assert list(Kept(folder=tmp_path, of=0)("x", (), read, str)) == []


def test_what_is_kept_is_no_code(tmp_path: Path) -> None:
    """A pickle that would call something is refused when it is read."""

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("called",)

    (tmp_path / "0.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "0.pt")


@pytest.mark.parametrize("name", ["mmvp_vlm", "segmentation"])
def test_readers_beside_it_find_the_same(tiny, tmp_path, name: str) -> None:
    """Two processes that decode ahead; tensors of one size, and pictures and labels of several."""
    clip = load_clip(tiny.backbones / "clip")
    params = build(Evaluate, tiny.params["evaluate"] | {"batch_size": 9}, "evaluate")
    alone, read_ahead = (
        get_benchmark(name, "clip").run(
            clip, tiny.benchmarks / name, params, clip, Kept(folder=folder, workers=workers)
        )
        for folder, workers in ((tmp_path / "alone", 0), (tmp_path / "ahead", 2))
    )
    assert alone == read_ahead and len(list((tmp_path / "ahead/0").glob("*.pt"))) > 2


def test_a_reader_s_error_keeps_its_words(tiny, tmp_path) -> None:
    """What cannot be read in another process is named as it is here."""
    folder = tmp_path / "mmvp_vlm"
    shutil.copytree(tiny.benchmarks / "mmvp_vlm", folder)
    broken = next(folder.glob("*/*/1.*"))
    broken.write_bytes(b"no picture")
    clip, params = load_clip(tiny.backbones / "clip"), build(Evaluate, tiny.params["evaluate"], "evaluate")
    for workers in (0, 1):
        with pytest.raises(UserError, match=rf"^{re.escape(str(broken))} is not a readable image"):
            get_benchmark("mmvp_vlm", "clip").run(
                clip, folder, params, clip, Kept(folder=tmp_path / f"{workers}", workers=workers)
            )
