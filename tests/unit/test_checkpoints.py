"""The state of a training that is not finished, in a folder: when it is kept, and what is read back."""

from pathlib import Path

import pytest
import torch

from un2clip.training.checkpoints import TENSORS, Checkpoints

ROW = {"step": 0, "loss": 0.5, "corrupt": 3}


def keep(folder: Path, **changes: object) -> Checkpoints:
    return Checkpoints(**({"folder": folder, "every": 4, "keep": 2, "final": False, "tags": {"a": "b"}} | changes))


@pytest.mark.parametrize(
    ("final", "stop", "steps"),
    [(False, False, [4, 8]), (True, False, [4, 8, 10]), (False, True, [*range(1, 11)])],
)
def test_when_it_is_kept(tmp_path: Path, final: bool, stop: bool, steps: list[int]) -> None:
    """Every fourth step of ten; the last one where phases follow; at once where a signal asks to stop."""
    kept = keep(tmp_path, final=final)
    assert [step for step in range(1, 11) if kept.due(step, 10, stop)] == steps


def test_the_newest_whole_one_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written comes back; a damaged one is skipped and named; the oldest are dropped."""
    kept = keep(tmp_path)
    assert kept.newest() is None
    for step in (1, 2, 3):
        kept.save(step, {"parameter.0": torch.arange(3.0) + step}, [ROW] * step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    found = kept.newest()
    assert found is not None and (found.step, found.history, found.tags) == (3, [ROW] * 3, {"a": "b"})
    assert torch.equal(found.tensors["parameter.0"], torch.arange(3.0) + 3)
    with (tmp_path / "step_00000003" / TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    older = kept.newest()
    assert older is not None and older.step == 2 and "step_00000003 is damaged" in capsys.readouterr().err
