"""Integers at the edge of what is sensible: each works, or is refused in one line that names it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import WORLD
from tests.robustness.integers import HINTS, Place, changed, places
from un2clip.config import build, convert
from un2clip.decoders.decoder import Cond
from un2clip.decoders.flow import FlowSize
from un2clip.decoders.kinds import KINDS, Scratch
from un2clip.decoders.pixels import Pixels, PixelsSize
from un2clip.errors import UserError
from un2clip.stages import run_stage

PLACES = places()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_each_is_taken_or_refused_by_name(place: Place, value: int) -> None:
    """-1 is no size, count or level; the seed is refused later, by its stage, and a layer may count from the end."""
    section = str(place[0])
    try:
        convert(HINTS[section], changed(place, value)[section], section)
    except UserError as error:
        said = str(error)
        assert (
            "\n" not in said
            and str(section if len(place) < 3 else place[-2 if isinstance(place[-1], int) else -1]) in said
        )
    else:
        assert value >= 0 or place in (("seed",), ("evaluate", "probe", "layer"), ("assistant", "layer"))


def test_all_are_looked_at() -> None:
    assert len(PLACES) > 100 and ("shapes", "pairs_per_type") in PLACES and ("study", "seeds", 0) in PLACES


def test_the_smallest_world_is_one(tmp_path: Path, tiny) -> None:
    """One scene, one pair, one image, one tar of each."""
    section = copy.deepcopy(tiny.params["shapes"])
    for _, *within, last in (place for place in PLACES if place[0] == "shapes" and place[-1] != "image_px"):
        (section[within[0]] if within else section)[last] = 1
    run_stage("shapes", section, seed=0, **{name: tmp_path / name for name in WORLD})
    assert len(list((tmp_path / "benchmarks/mmvp_vlm").rglob("*.jpg"))) == 2 * 9
    with pytest.raises(UserError, match="seed must not be negative"):
        run_stage("shapes", tiny.params["shapes"], seed=-1, **{name: tmp_path / name for name in WORLD})


@pytest.mark.parametrize("latent", [1, 4])
@pytest.mark.parametrize("channels", [(8, 16), (16, 8), (1, 16), (16, 1), (1, 1), (6, 4)])
def test_a_pixel_decoder_draws_or_is_refused(latent: int, channels: tuple[int, ...]) -> None:
    """What is built can be run; what diffusers cannot build is said with the section's name."""
    size = PixelsSize(
        latent_channels=latent, decoder_block_out_channels=channels, decoder_layers_per_block=(0,) * len(channels)
    )
    try:
        decoder = Pixels.scratch(16, size)
    except UserError as error:
        assert str(error).startswith("finetune.scratch.pixels is no shape that diffusers can build")
        assert channels != (8, 16)
    else:
        drawn = decoder.predict(torch.zeros(2, 3, 16, 16), Cond(spatial=torch.zeros(2, latent, 4, 4)), {})
        assert drawn.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "builds"), [("attention_head_dim", False), ("num_single_layers", True), ("num_layers", True)]
)
def test_a_flow_is_built_or_refused(tiny, name: str, builds: bool) -> None:
    """Numbers turn in pairs, so a head needs an even number of them."""
    given: dict[str, Any] = tiny.params["finetune"]["scratch"]
    scratch = build(Scratch, given | {"flow": given["flow"] | {name: 1}}, "scratch")
    assert isinstance(scratch.flow, FlowSize)
    if builds:
        KINDS["flow"].open(tiny.backbones, scratch, 32)
    else:
        with pytest.raises(UserError, match=r"^finetune.scratch.flow is no shape .*divisible"):
            KINDS["flow"].open(tiny.backbones, scratch, 32)
