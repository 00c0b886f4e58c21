"""Every block of docs/extending.md does what the page says, put where the page says."""

import json
import re
import shutil
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.toy_clips import write_folder
from un2clip import stages
from un2clip.config import merge
from un2clip.datasets.shards import samples
from un2clip.decoders.kinds import KINDS, load_decoder
from un2clip.evaluation import measuring
from un2clip.evidence.scores import load_scores
from un2clip.hashes import tensors_sha256
from un2clip.methods.conditions import CONDITIONS
from un2clip.methods.table import METHODS
from un2clip.models.clip import load_clip
from un2clip.stages import run_stage

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()


def block(title: str) -> str:
    """The code under a heading of the page."""
    (found,) = re.findall(rf"^## {title}\n.*?^```\w+\n(.*?)^```", PAGE, re.M | re.S)
    return str(found)


def module(name: str, title: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the package, made of what the page shows."""
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(block(title), "docs/extending.md", "exec", dont_inherit=True), vars(made))
    return made


def test_an_encoder(tiny, tmp_path, monkeypatch) -> None:
    """The overlay names a CLIP and its unCLIP; the stage takes both, and another family's CLIP is told apart."""
    monkeypatch.chdir(tmp_path)
    overlay = yaml.safe_load(block("An encoder is an overlay"))
    shutil.copytree(tiny.backbones / "clip", "data/encoders/mine")
    shutil.copytree(tiny.backbones / "unclip", "data/generators/mine")
    params = merge(tiny.params["backbones"], overlay["backbones"] | {"text_to_image": {"weights": "none"}})
    words: dict[str, Any] = {"seed": 1, "device": "cpu", "images": tiny.images, "backbones": Path("b")}
    run_stage("backbones", params, **words)
    found, theirs = (load_clip(folder).model.state_dict() for folder in (Path("b/clip"), tiny.backbones / "clip"))
    assert tensors_sha256(found) == tensors_sha256(theirs)
    shutil.rmtree("data/encoders/mine")
    write_folder(Path("data/encoders/mine"), "gelu")
    with pytest.raises(ValueError, match="the encoder's embedding has 32 numbers and the generator understands 16"):
        run_stage("backbones", params, **words)


def test_a_benchmark(tiny, tmp_path, monkeypatch) -> None:
    """It is found by its name, and the stage writes scores of both encoders."""
    made = module("un2clip.evaluation.benchmarks.contrast", "A benchmark is a file", monkeypatch)
    monkeypatch.setattr(measuring, "file_names", lambda: ["contrast"])
    (tmp_path / "data/contrast").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"data/contrast/{name}.png")
    assert measuring.get_benchmark("contrast", "clip").file is made
    words = {"benchmark": "contrast", "benchmarks": tmp_path / "data", "device": "cpu", "backbones": tiny.backbones}
    words["checkpoints"] = ""
    run_stage("evaluate", tiny.params["evaluate"], encoder=tiny.backbones / "clip", scores=tmp_path / "s", **words)
    scores = load_scores(tmp_path / "s/tuned.json")
    assert [item.id for item in scores.items] == ["a", "b"] and {item.value for item in scores.items} == {1.0}


def test_a_condition_a_decoder_and_a_method(tiny, tmp_path, monkeypatch) -> None:
    """A row of the three trains by the stage, in its two phases, and what trained is kept and read again."""
    for table in (CONDITIONS, KINDS, METHODS):
        for name in ("halved", "colour"):  # monkeypatch puts back that they are absent
            monkeypatch.delitem(table, name, raising=False)
    before = dict(CONDITIONS), dict(KINDS), dict(METHODS)
    try:
        for title in ("A condition is a class and an entry", "A decoder is a class and an entry", "A method is a row"):
            exec(compile(block(title), "docs/extending.md", "exec", dont_inherit=True), {})
        words = {"method": "colour", "seed": 3, "device": "cpu", "checkpoints": ""}
        paths = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents}
        run_stage("finetune", tiny.params["finetune"], encoder=tmp_path / "e", **words, **paths)
        history = json.loads((tmp_path / "e/history.json").read_text())
        assert len(history) == 6 and {"loss", "colour_loss", "embedding"} <= history[0].keys()
        assert [row["embedding"] for row in history[:4]] == [0.0] * 4 and history[5]["embedding"] > 0
        assert history[5]["colour_loss"] != history[0]["colour_loss"]
        assert load_decoder(tmp_path / "e/decoder").target_shape == (3,)
    finally:
        for table, content in zip((CONDITIONS, KINDS, METHODS), before, strict=True):
            table.clear()
            table.update(content)


def test_a_stage(tiny, tmp_path, monkeypatch) -> None:
    """It runs by its name, with its section read strictly."""
    module("un2clip.stages.list_keys", "A stage is a function", monkeypatch)
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, "list_keys"))
    run_stage("list_keys", {"at_most": 3}, shards=tiny.shards, keys=tmp_path / "keys")
    keys = (tmp_path / "keys").read_text().split()
    assert keys == [sample.key for sample in islice(samples(tiny.shards / "train"), 3)]
    with pytest.raises(ValueError, match=r"unknown parameter list_keys\.at_least; known here: at_most"):
        run_stage("list_keys", {"at_least": 3}, shards=tiny.shards, keys=tmp_path / "keys")


def test_each_block_is_short() -> None:
    """Of ten lines or so beside its imports; the decoder, which is a class and how it is kept, of thirty."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGE, re.M | re.S)
    own = [[line for line in code.split("\n") if line and not line.startswith(("import", "from"))] for code in blocks]
    assert len(own) == 6 and sorted(map(len, own))[-2] <= 12 and max(map(len, own)) <= 30
