"""The numbers of every method are those of golden.json; `make golden` writes it anew, which is a change to explain."""

from pathlib import Path
from typing import Any

import pytest

from tests.golden.golden import STEPS, machine, measure, recorded, train
from un2clip.config import merge
from un2clip.methods.table import METHODS


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure(tiny, tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("method", METHODS)
def test_losses(measured: dict[str, Any], method: str) -> None:
    """Twenty steps of each phase have the recorded losses on any machine, within 1e-6 of their size."""
    losses = measured["losses"][method]
    assert len(losses) == STEPS * len(METHODS[method].phases)
    assert losses == pytest.approx(recorded()["losses"][method], rel=1e-6, abs=0)


def test_every_method_is_recorded() -> None:
    """A new row needs golden losses, and one that is gone leaves none behind."""
    assert list(recorded()["losses"]) == list(METHODS)


def test_bytes(measured: dict[str, Any]) -> None:
    """On a machine like the recorded one, weights and scores files are the recorded ones to the byte."""
    ours, theirs = machine(), recorded()["machine"]
    if ours != theirs:
        other = ", ".join(
            f"{name} {ours[name]!r}, not {theirs[name]!r}" for name in theirs if ours[name] != theirs[name]
        )
        pytest.skip(f"hashes of weights and scores belong to another machine: {other}")
    assert measured["sha256"] == recorded()["sha256"]


def test_a_rounding_is_no_change_and_a_rate_is(measured: dict[str, Any], tmp_path: Path, tiny) -> None:
    """The comparison tells a learning rate that is one per cent higher from what another processor rounds."""
    params = merge(tiny.params, {"finetune": {"phases": {"tune": {"lr": {"encoder": 1.01e-4}}}}})
    losses = [row["loss"] for row in train(type(tiny)(tiny.folder, params), "un2clip", tmp_path)]
    assert losses != pytest.approx(recorded()["losses"]["un2clip"], rel=1e-6, abs=0)
    assert losses == pytest.approx(recorded()["losses"]["un2clip"], rel=1e-2)
