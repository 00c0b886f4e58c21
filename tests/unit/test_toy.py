import copy
import functools

import pytest
import torch

from un2clip.config import build
from un2clip.errors import UserError
from un2clip.stages import run_stage
from un2clip.stages.backbones import Backbones
from un2clip.world.training import orders


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("clip", "width", 40, "backbones.clip.width must be a multiple of head_width, got 40 and 16"),
        ("clip", "patch_size", 5, "backbones.clip.image_px must be a multiple of patch_size, got 32 and 5"),
        ("phases.clip", "steps", 0, "backbones.phases.clip.steps must be at least 1, got 0"),
        (
            "vae",
            "block_out_channels",
            [12, 8],
            r"backbones.vae.block_out_channels must be multiples of 8, got \[12, 8\]",
        ),
        ("vae", "batch_size", 0, "backbones.vae.batch_size must be at least 1, got 0"),
        ("unet", "block_out_channels", [], r"backbones.unet.block_out_channels must be multiples of 8, got \[\]"),
        ("unet", "prediction_type", "sample", "must be one of epsilon, v_prediction, got 'sample'"),
    ],
)
def test_bad_sizes_are_refused(tiny, part: str, name: str, value: object, message: str) -> None:
    """A size that the real classes would stumble over is one line that names it."""
    section = copy.deepcopy(tiny.params["backbones"])
    functools.reduce(dict.__getitem__, part.split("."), section)[name] = value
    with pytest.raises(UserError, match=message):
        build(Backbones, section, "backbones")


def test_too_few_samples_are_refused(tiny, tmp_path) -> None:
    """A batch larger than the world is refused before any training."""
    section = copy.deepcopy(tiny.params["backbones"])
    section["clip"]["batch_size"] = 1000
    with pytest.raises(UserError, match="holds 192 samples, fewer than one batch of 1000"):
        run_stage("backbones", section, seed=0, device="cpu", images=tiny.images, backbones=tmp_path / "b")


def test_orders_are_full_batches_of_an_epoch_each() -> None:
    """Ten indices in batches of four: two batches an epoch, no index twice in it, as many steps as asked."""
    torch.manual_seed(0)
    batches = [index.tolist() for index in orders(10, 4, 5)]
    assert [len(batch) for batch in batches] == [4] * 5
    assert all(len({*batches[i], *batches[i + 1]}) == 8 for i in (0, 2))
    assert batches[0] != batches[2]
