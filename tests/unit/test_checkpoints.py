"""The state of a training that is not finished, in a folder: what is read back."""

import json
from pathlib import Path

import torch

from un2clip.training.checkpoints import CONTENT, Checkpoints


def test_the_state_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Its history counts samples as `unreadable`, which are `corrupt` now; nothing else changes."""
    kept = Checkpoints(folder=tmp_path, every=1, keep=2, tags={"mlflow_run": None})
    row = {"step": 0, "loss": 0.5, "corrupt": 3}
    kept.save(1, {"parameter.0": torch.arange(3.0)}, [row])
    path = tmp_path / "step_00000001" / CONTENT
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"history": [{"step": 0, "loss": 0.5, "unreadable": 3}]}))
    found = kept.newest()
    assert found is not None and found.history == [row] and found.step == 1
    assert torch.equal(found.tensors["parameter.0"], torch.arange(3.0))
