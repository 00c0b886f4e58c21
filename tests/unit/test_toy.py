import copy
import dataclasses
import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from un2clip.config import build, merge
from un2clip.errors import UserError
from un2clip.hashes import tensors_sha256
from un2clip.stages import run_stage
from un2clip.stages.backbones import Backbones
from un2clip.world.clip import new_clip, one_hot, train_clip, train_words
from un2clip.world.scenes import ATTRIBUTES
from un2clip.world.training import Schooling, orders, train_toy
from un2clip.world.vae import Autoencoding, new_vae


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
    batches = [index.tolist() for index in orders(10, 4, 5, 0, seed=0)]
    assert [len(batch) for batch in batches] == [4] * 5
    assert all(len({*batches[i], *batches[i + 1]}) == 8 for i in (0, 2))
    assert batches[0] != batches[2]
    assert [index.tolist() for index in orders(10, 4, 5, 3, seed=0)] == batches[3:], "from a step on, the same"
    assert [index.tolist() for index in orders(10, 4, 5, 0, seed=1)] != batches


def toy_vae(tiny) -> tuple[torch.nn.Module, Backbones]:
    params = build(Backbones, tiny.params["backbones"], "backbones")
    torch.manual_seed(0)
    return new_vae(params.vae, 32), params


class Dying(Autoencoding):
    """A training whose process ends in its fourth step."""

    calls = 0

    def forward(self, *arguments: object, **named: object) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == 4:
            raise KeyboardInterrupt
        return super().forward(*arguments, **named)


def test_a_toy_that_was_cut_off_ends_with_the_same_bytes(tiny, tmp_path) -> None:
    """Six steps at once, and six steps that broke in the fourth: all weights equal, averages included."""
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ended = {}
    for name, breaks in (("whole", False), ("broken", True)):
        schooling = Schooling(seed=3, precision="fp32", checkpoint_every=1, state=tmp_path / name)
        for kind in (Dying, Autoencoding) if breaks else (Autoencoding,):
            vae, params = toy_vae(tiny)
            phase = dataclasses.replace(params.phases["vae"], steps=6, ema_decay=0.5)
            with pytest.raises(KeyboardInterrupt) if kind is Dying else nullcontext():
                train_toy("vae", kind(vae, 1e-6), "vae", phase, {"images": images}, 8, schooling)
        ended[name] = tensors_sha256(vae.state_dict())
    assert ended["whole"] == ended["broken"]


def test_a_locked_text_tower_learns_the_words_first_and_then_stays(tiny, tmp_path) -> None:
    """The words move the text tower and no weight of the image tower; the images move the image tower alone."""
    params = build(Backbones, merge(tiny.params["backbones"], {"clip": {"text": "locked"}}), "backbones")
    schooling = Schooling(seed=3, precision="fp32", checkpoint_every=1, state=None)
    torch.manual_seed(0)
    clip = new_clip(params.clip, tmp_path)

    def towers() -> tuple[str, str]:
        state = clip.model.state_dict()
        texts = {name: value for name, value in state.items() if not name.startswith(("visual.", "logit_scale"))}
        return tensors_sha256(texts), tensors_sha256(clip.model.visual.state_dict())

    before = towers()
    train_words(clip, params.clip, params.words, params.phases["words"], schooling, clip.device)
    words = towers()
    assert words[0] != before[0] and words[1] == before[1]
    pixel_values, texts = torch.randn(32, 3, 32, 32), clip.tokenize(["a red circle"] * 32)
    train_clip(clip, pixel_values, texts, params.clip, params.phases["clip"], schooling)
    assert towers()[0] == words[0] and towers()[1] != words[1]


def test_one_hot_scenes(tiny) -> None:
    """A one for each attribute's value, in the order of the table; nothing else."""
    scene = np.array([[index % len(values) for index, values in enumerate(ATTRIBUTES.values())]])
    row = one_hot(scene)[0].tolist()
    words = [(name, value) for name, values in ATTRIBUTES.items() for value in values]
    assert len(row) == len(words) and sum(row) == len(ATTRIBUTES)
    assert [word for word, x in zip(words, row, strict=True) if x] == [
        (name, values[scene[0, i]]) for i, (name, values) in enumerate(ATTRIBUTES.items())
    ]
