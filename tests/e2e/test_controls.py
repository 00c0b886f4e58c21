"""Controls of assistants: what the two encoders are, and the command from nothing to its tables."""

from pathlib import Path

import pytest
import torch

from un2clip.__main__ import main
from un2clip.config import merge, read_params
from un2clip.evidence.scores import load_scores
from un2clip.hashes import folder_sha256
from un2clip.models.clip import Clip, load_clip
from un2clip.sources.packaged import located
from un2clip.study.assistants import at_random, blind
from un2clip.study.labelled import with_labels

ROOT = Path(__file__).parents[2]
PAIR = Path(located("laptop-pair", "clip"))
CANNOT = (
    "labels must be better, and is, beyond the spread, on none; "
    "this world, so trained, cannot tell it by cv_bench, mmvp, naturalbench, pope"
)


def tokens(clip: Clip) -> torch.Tensor:
    """Patch tokens of four pictures of noise, (4, tokens, width), before the last block."""
    kept = []
    blocks = clip.model.visual.transformer.resblocks
    handle = blocks[-2].register_forward_hook(lambda module, given, made: kept.append(made.detach()))
    size = clip.model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    clip.embed(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1)))
    handle.remove()
    return kept[0]


def test_the_blind_one_sees_nothing_and_the_random_one_something_else() -> None:
    """Blind: four pictures have the same tokens, exactly. Random: others than the reference, and each its own."""
    reference, without, random = (load_clip(PAIR) for _ in range(3))
    blind(without, {})
    at_random(random, {})
    seen, unseen, other = map(tokens, (reference, without, random))
    assert torch.equal(unseen, unseen[:1].expand_as(unseen)) and not torch.equal(seen[0], seen[1])
    assert not torch.equal(other[0], other[1]) and not torch.allclose(seen, other, atol=0.1)
    assert torch.isfinite(other).all()
    for ours, theirs in zip(random.model.visual.parameters(), reference.model.visual.parameters(), strict=True):
        if ours.numel() > 1000:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def test_labels_move_the_tokens_that_are_read_and_no_others(monkeypatch) -> None:
    """After 40 steps the loss is lower than at first; the last block, which layer -2 does not read, is as it was."""
    params = read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])
    few = {"steps": 40, "warmup_steps": 2, "lr": {"clip": 3.0e-3}}
    params = merge(params, {"device": "cpu", "backbones": {"phases": {"clip": few}}})
    losses: list[float] = []
    monkeypatch.setattr("un2clip.tracking.log_metrics", lambda step, values: losses.append(values["labels_loss"]))
    taught, before = load_clip(PAIR), load_clip(PAIR)
    with_labels(taught, params)
    assert len(losses) == 40 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    moved = {
        name for name, value in before.model.named_parameters()
        if not torch.equal(value, dict(taught.model.named_parameters())[name])
    }  # fmt: skip
    assert any("resblocks.0." in name for name in moved) and any("resblocks.1." in name for name in moved)
    assert all(name.startswith("visual.") for name in moved) and not any("resblocks.2." in name for name in moved)


def test_controls_from_nothing_to_their_tables(tmp_path: Path, monkeypatch, capsys) -> None:
    """Two seeds of four encoders at toy size, which learn nothing: no score is called lower. Again, none is made."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "few.yaml").write_text(
        "shapes: {questions: {pictures: 24, turns: 2, of_each: 1}}\ndevice: cpu\nbackbones: {clip: {layers: 2}}\n"
        "compare: {resamples: 200}\n"
    )
    monkeypatch.setattr("un2clip.evidence.assistants.WIDTH", 200)  # so that no name is folded
    overlays = ["configs/laptop-assistants.yaml", "tests/e2e/tiny.yaml", str(tmp_path / "few.yaml")]
    words = [f"--to={tmp_path / 'to'}", *(f"--overlay={each}" for each in overlays), "--seeds", "0", "1"]
    assert main(["controls", *words]) == 0
    printed = capsys.readouterr().out
    for text in (
        "blind, in the column of the tuned encoder",
        "random, in the column",
        "labels, in the column",
        "cv_bench (% by source)",
        CANNOT,
    ):
        assert text in printed
    assert printed.count("nothing shown") == 12 and "worse, beyond" not in printed
    made = {path.parents[2].relative_to(tmp_path / "to/scores") for path in (tmp_path / "to").rglob("asked.json")}
    assert {str(path) for path in made} == {
        f"{name}/{seed}" for name in ("reference", "blind", "random", "labels") for seed in "01"
    }
    scores = load_scores(tmp_path / "to/scores/blind/0/pope/tuned/asked.json")
    assert (scores.role, scores.method) == ("tuned", "blind")
    before = folder_sha256(tmp_path / "to")
    assert main(["controls", *words]) == 0
    assert folder_sha256(tmp_path / "to") == before and capsys.readouterr().out.endswith(printed[-200:])


def test_a_world_without_questions_cannot_be_asked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["controls", f"--to={tmp_path}", "--seeds", "0"]) == 2
    assert "shapes.questions makes no questions; lay configs/laptop-assistants.yaml" in capsys.readouterr().err
