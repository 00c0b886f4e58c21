"""`un2clip explain`: the words of params.yaml, where they are read, and what the rules could show."""

import shutil
from pathlib import Path

import pytest

from un2clip.__main__ import main
from un2clip.cli.explaining import explain
from un2clip.errors import UserError
from un2clip.evidence.items import Item
from un2clip.evidence.scores import Scores

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def test_a_key_has_its_meaning_its_place_and_its_readers():
    """The comment behind it, the class that holds it, the stage, the methods and the overlays that change it."""
    said = explain("finetune.phases.tune.steps", PARAMS)
    assert said.splitlines()[:2] == ["finetune.phases.tune.steps = 1000", "  optimiser steps"]
    assert "  read by   the stage finetune\n  read by   PhaseConfig.steps in un2clip/training/config.py\n" in said
    assert "the methods un2clip, " in said and "  changed   paper.yaml: finetune.phases.tune.steps = 92000" in said
    assert "  read by   the stages compare, promote\n" in explain("compare.power", PARAMS)
    assert "  read by   the stages shapes, " in explain("seed", PARAMS)
    assert "place     world.yaml" in explain("shapes.train_scenes", PARAMS)


def test_mappings_sections_and_old_names():
    """A rate is a key of a mapping, a section lists what it holds, and an old name leads to the new one."""
    rate = explain("finetune.phases.tune.lr.encoder", PARAMS)
    assert rate.startswith(
        "finetune.phases.tune.lr.encoder = 0.0003\n  learning rate of each part that a method trains"
    )
    assert "  holds     diffusion_loss.images = 500\n  holds     diffusion_loss.bins = 10\n" in explain(
        "diffusion_loss", PARAMS
    )
    renamed = explain("finetune.training.noise_level", PARAMS)
    assert renamed.startswith("finetune.phases.tune.noise.noise_level is its name now\n")


@pytest.mark.parametrize("name", ["noise_level", "finetune.batch_size.x", "nonsense", "finetune.batchsize"])
def test_what_there_is_not(name):
    """One sentence, which names keys that are like it where there are any."""
    said = rf"no number is called '{name}'(; like it: .*)?; docs/params.md has all"
    with pytest.raises(UserError, match=said) as error:
        explain(name, PARAMS)
    assert (name != "nonsense") == ("like it: " in str(error.value))


def test_what_the_rules_could_show(tmp_path, monkeypatch, capsys):
    """Before anything was measured from the catalogue's number of items; afterwards from what changed."""
    for name in ("params.yaml", "world.yaml", "download.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "promote.rules"]) == 0
    said = capsys.readouterr().out
    assert "mmvp_vlm, superiority: 135 published items: 9.1 points where 15 % change, 12 points where 25 %" in said
    assert "zeroshot, non-inferiority with a margin of 2: its scores, its data, or an entry" in said
    pairs = tmp_path / "data/world/benchmarks/mmvp_vlm"
    (pairs / "MLLM_VLM Images/Color").mkdir(parents=True)
    for i in (1, 2, 3, 4):
        (pairs / f"MLLM_VLM Images/Color/{i}.png").touch()
    rows = "".join(f"{i},Color,a dog\n" for i in (1, 2, 3, 4))
    (pairs / "Questions.csv").write_text(f"Question ID,Type,Statement\n{rows}")
    assert main(["explain", "promote.rules"]) == 0
    assert "superiority: 2 items in data/world/benchmarks/mmvp_vlm: no outcome could pass" in capsys.readouterr().out
    for role, right in (("reference", 300), ("tuned", 310)):
        items = tuple(Item(id=str(i), type="all", value=float(i < right)) for i in range(400))
        Scores(benchmark="zeroshot", role=role, method="m", unit="%", protocol="", data_sha256="d", items=items,
               encoder_sha256="e").save(tmp_path / f"scores/zeroshot/{role}.json")  # fmt: skip
    assert main(["explain", "promote.rules"]) == 0
    assert "margin of 2: 400 samples, of which 10 changed in scores/zeroshot: 0." in capsys.readouterr().out
