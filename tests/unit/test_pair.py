"""`make pair`: what it writes, what it measures; and the pair that is shipped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.wiring.schema import ROOT
from un2clip.config import build, merge, read_params
from un2clip.decoders import load_generator
from un2clip.hashes import file_sha256
from un2clip.models.clip import load_clip
from un2clip.sources.packaged import PACKAGED, located
from un2clip.stages import run_stage
from un2clip.study import pair_measures
from un2clip.study.judge import right, train_judge
from un2clip.study.pair import describe, make_pair
from un2clip.study.pair_measures import DETAILS, PairMeasures
from un2clip.world import scenes


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A pair of toy size, and the folder of its work."""
    folder = tmp_path_factory.mktemp("pair")
    params = merge(tiny.params, {"shapes": {"train_scenes": 64, "heldout_scenes": 4}})
    make_pair(params, seed=4, to=folder / "pair", work=folder / "work")
    return params, folder


def test_a_pair_is_written_in_half_precision_and_read_like_published_weights(made, tiny, tmp_path) -> None:
    """Every floating-point tensor is half; `backbones` reads both folders, and gives the same values in float32."""
    params, folder = made
    files = sorted((folder / "pair").rglob("*.safetensors"))
    kinds = {value.dtype for file in files for value in load_file(file).values() if value.is_floating_point()}
    assert kinds == {torch.float16} and {file.stat().st_mode & 0o777 for file in files} == {0o644}
    parts = {"encoder": "clip", "generator": "unclip"}
    weights = {name: {"weights": str(folder / "pair" / part)} for name, part in parts.items()}
    section = merge(params["backbones"], weights | {"text_to_image": {"weights": "none"}})
    run_stage("backbones", section, seed=0, device="cpu", images=tmp_path / "none", backbones=tmp_path / "b")
    own = load_file(folder / "pair/clip/open_clip_model.safetensors")
    assert all(
        torch.equal(value, own[name].float())
        for name, value in load_clip(tmp_path / "b/clip").model.state_dict().items()
    )
    assert load_generator(tmp_path / "b/unclip").embed_dim == 16


def test_what_is_measured_are_percentages_of_a_hundred(made) -> None:
    """The benchmarks' own scores: of 36 classes, one image each, a CLIP gets a whole number right."""
    measured = json.loads((made[1] / "pair/measures.json").read_text())
    correct = measured["zeroshot"] / 100 * 36
    assert 0 <= measured["zeroshot"] <= 100 and correct == pytest.approx(round(correct))
    assert 0 <= measured["pairs"] <= 100 and set(measured["turned"]) == set(measured["heard"]) == set(DETAILS)


def test_a_pair_that_was_cut_off_goes_on_to_the_same_bytes(made) -> None:
    """The work is there, the result is gone: nothing is trained again, and all hashes are the same."""
    params, folder = made
    before = json.loads((folder / "pair/measures.json").read_text())
    shutil.move(folder / "pair", folder / "before")
    make_pair(params, seed=4, to=folder / "pair", work=folder / "work")
    after = json.loads((folder / "pair/measures.json").read_text())
    assert {k: v for k, v in after.items() if k != "minutes"} == {k: v for k, v in before.items() if k != "minutes"}
    assert after["sha256"] == {
        str(file.relative_to(folder / "pair")): file_sha256(file) for file in (folder / "pair").rglob("*.safetensors")
    }


def test_twins_differ_in_one_attribute() -> None:
    """Of each attribute: held-out scenes, and the same ones with another value of it and nothing else."""
    for attribute in DETAILS:
        own, other = pair_measures.twins(np.random.default_rng(0), attribute, 40, plain=0.5)
        assert len(own) == 40 and scenes.is_heldout(own).all()
        assert ((own != other).sum(axis=1) == 1).all() and (own != other)[:, scenes.COLUMN[attribute]].all()
        assert np.array_equal(scenes.canonical(other), other)


def test_decibels_by_the_formula(tiny) -> None:
    """Ten times the logarithm of the squared range over the mean squared error, a picture at a time."""
    generator = load_generator(tiny.backbones / "unclip")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = generator.decode(generator.encode(images))
    by_hand = [10 * np.log10(4 / ((a - b) ** 2).mean().item()) for a, b in zip(seen, images, strict=True)]
    assert pair_measures.vae_decibels(generator, images) == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_the_judge_learns_what_it_is_shown(tiny) -> None:
    """Colours are learned in a few steps: far above the sixth that guessing gives, on scenes that it has not seen."""
    rng, lr = np.random.default_rng(0), tiny.params["pair"]["classifier_lr"]
    sets = [scenes.draw(rng, n, plain=0.6, heldout=held) for n, held in ((640, False), (120, True))]
    clip, generator = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
    images = [pair_measures.see(clip, generator, scenes.render(rng, each, 32)).images for each in sets]
    labels = [torch.tensor(each[:, [scenes.COLUMN[name] for name in pair_measures.NAMED]]) for each in sets]
    judge = train_judge(images[0], labels[0], pair_measures.NAMED, seed=0, epochs=3, lr=lr)
    assert right(judge, images[1], labels[1])["colour"] > 50
    wrong = torch.stack([(labels[1][:, 0] + 1) % 6, labels[1][:, 1]], dim=1)
    found = [right(judge, images[1], each) for each in (labels[1], wrong)]
    assert found[0]["object"] + found[1]["object"] <= 100 and found[0]["colour"] == found[1]["colour"]


WANTED = build(PairMeasures, read_params(ROOT / "params.yaml")["pair"], "pair").wanted
GOOD = {
    "vae_db": 28.0,
    "drawn": {1.0: {"object": 70.0, "colour": 96.0}, 2.0: {"object": 80.0, "colour": 95.0}},
    "heard": {name: {0: (5.0, 1.0), 500: (5.0, 1.0)} for name in DETAILS[:7]}
    | {name: {0: (0.0, 1.0), 500: (0.0, 1.0)} for name in DETAILS[7:]},
    "statements": dict.fromkeys("abcdefg", 0.89) | dict.fromkeys("hi", 0.95),
    "zeroshot": 70.0,
    "pairs": 50.0,
}


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, ""),
        ({"vae_db": 27.9}, "28 dB"),
        ({"drawn": {2.0: {"object": 79.0, "colour": 95.0}}}, "objects"),
        ({"drawn": {2.0: {"object": 80.0, "colour": 94.0}}}, "colours"),
        ({"heard": GOOD["heard"] | {DETAILS[0]: {0: (4.9, 1.0), 500: (5.0, 1.0)}}}, "level 0 "),
        ({"heard": GOOD["heard"] | {DETAILS[0]: {0: (5.0, 1.0), 500: (4.9, 1.0)}}}, "level 500 "),
        ({"statements": GOOD["statements"] | {"a": 0.9}}, "told apart"),
        ({"zeroshot": 69.9}, "zero-shot"),
        ({"pairs": 14.9}, "pairs are"),
        ({"pairs": 50.1}, "pairs are"),
    ],
)
def test_conditions(changes: dict, fails: str) -> None:
    """A pair on every border fulfils all; a little beyond any border exactly that condition fails."""
    held = pair_measures.conditions(GOOD | changes, (0, 500), WANTED)
    assert [name for name, holds in held.items() if not holds] == [name for name in held if fails and fails in name]
    assert len(held) == 8 and (not fails or sum(fails in name for name in held) == 1)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_shipped_pair_is_what_its_page_says(name: str) -> None:
    """At most 20 MB, every hash as recorded, every condition as the measures have it; both parts load and fit."""
    folder = Path(located(name, "."))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    measured = json.loads((folder / "measures.json").read_text())
    weights = {str(f.relative_to(folder)): file_sha256(f) for f in files if f.suffix == ".safetensors"}
    assert weights == measured["sha256"]
    levels = list(next(iter(measured["heard"].values())))
    assert pair_measures.conditions(measured, levels, WANTED) == measured["conditions"]
    assert (folder / "README.md").read_text() == describe(measured)
    clip, generator = load_clip(folder / "clip"), load_generator(folder / "unclip")
    generator.check_fits(clip.embed_dim)
