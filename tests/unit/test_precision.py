"""Towers in bf16: what stays fp32, what the protocol says, and when the gate may judge by it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.candidates import HOW, RULES, Candidate, new_weights
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate, Subject, get_benchmark, measure
from un2clip.evidence.precision import held_in_both, in_bf16
from un2clip.evidence.scores import BF16, Item, Scores, collect_scores, mismatch
from un2clip.models.clip import load_clip
from un2clip.stages.compare import compare
from un2clip.stages.evaluate import evaluate
from un2clip.stages.promote import Promote, promote


def test_embeddings_are_fp32_and_near_those_of_fp32(tiny) -> None:
    """Images, texts and classes are those of autocast, not those of fp32, and have fp32's length to the last digits."""
    clip = load_clip(tiny.backbones / "clip")
    half = dataclasses.replace(clip, precision="bf16")
    torch.manual_seed(0)
    pixel_values, texts = torch.randn(4, 3, *clip.image_size), ["a red circle", "a photo of a blue square"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = clip.model.encode_image(pixel_values)
    assert torch.equal(half.embed(pixel_values), expected.float())
    classes = half.embed_classes(texts, [str.upper, str.title], at_once=2)
    assert (classes.norm(dim=0) - 1).abs().max() < 1e-6
    for found, exact in (
        (half.embed(pixel_values), clip.embed(pixel_values)),
        (half.embed_texts(texts), clip.embed_texts(texts)),
        (classes, clip.embed_classes(texts, [str.upper, str.title], at_once=2)),
    ):
        assert found.dtype == torch.float32 and not torch.equal(found, exact)
        assert (found - exact).norm() < 0.02 * exact.norm()


def test_texts_in_bf16_are_kept_apart(tiny, tmp_path: Path) -> None:
    """A cache of fp32 is not read in bf16."""
    source = tiny.backbones / "clip"
    clip = load_clip(source)
    full = clip.keeping_texts(source, tmp_path)
    half = dataclasses.replace(clip, precision="bf16").keeping_texts(source, tmp_path, full)
    kept = [each.embed_classes(["red"], [str.upper], at_once=1) for each in (full, half)]
    assert not torch.equal(*kept) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["mmvp_vlm", "zeroshot", "segmentation", "probe"])
def test_the_protocol_says_it(tiny, name: str) -> None:
    """Every benchmark of an encoder runs, and its scores cannot be taken for those of fp32."""
    clip, params = load_clip(tiny.backbones / "clip"), tiny.section(Evaluate, "evaluate")
    found = []
    for each in (clip, dataclasses.replace(clip, precision="bf16")):
        subjects = {"reference": Subject(model=each, method="reference", encoder_sha256="e")}
        found.append(measure(get_benchmark(name, "clip"), subjects, tiny.benchmarks / name, params))
    for full, half in zip(*found, strict=True):
        assert half.protocol == in_bf16(full.protocol) and half.bf16 and not full.bf16
        assert "measured in different ways" in str(mismatch(full, half))
        assert mismatch(dataclasses.replace(full, protocol=in_bf16(full.protocol)), half) is None


def test_the_stage_takes_the_word(tiny, tmp_path: Path) -> None:
    """evaluate.precision reaches the towers, and both files say so."""
    params = dataclasses.replace(tiny.section(Evaluate, "evaluate"), precision="bf16")
    evaluate(
        params, benchmark="mmvp_vlm", device="cpu", checkpoints="", benchmarks=tiny.benchmarks,
        backbones=tiny.backbones, encoder=tiny.backbones / "clip", scores=tmp_path,
    )  # fmt: skip
    pair = collect_scores([tmp_path])["mmvp_vlm"]
    assert [each.bf16 for each in pair.values()] == [True, True] and pair["tuned"].items == pair["reference"].items


def save(folder: Path, role: str, right: set[int], protocol: str, sha256: str) -> None:
    items = tuple(Item(id=str(i), type="all", value=float(i in right)) for i in range(400))
    Scores(
        benchmark="mmvp_vlm", role=role, method=role, unit="%", protocol=protocol, data_sha256="d" * 64,
        encoder_sha256=sha256, items=items,
    ).save(folder / f"{role}.json")  # fmt: skip


def test_the_gate_asks_for_both(tmp_path: Path, capsys) -> None:
    """Refused with bf16 alone; judged by bf16 once the reference's items in fp32 were seen, 3 of which differ."""
    made = Candidate(tmp_path, new_weights(), "c", detail=200)
    names = {"encoder": made.encoder, "report": made.report}
    protocol, apart = in_bf16("fp32; ties are image 2"), tmp_path / "fp32"
    save(made.scores / "mmvp_vlm", "reference", set(range(100)), protocol, "a" * 64)
    save(made.scores / "mmvp_vlm", "tuned", set(range(200)), protocol, made.sha256)

    def judge(*folders: Path) -> dict:
        compare(HOW["compare"], seed=10, scores=list(folders), reconstructions=tmp_path / "none", **names)
        params = Promote(registered_model="m", champion="manual", rules=RULES)
        promote(params, **HOW, scores=list(folders), decision=tmp_path / "decision", **names)
        return json.loads((tmp_path / "decision/decision.json").read_text())

    with pytest.raises(UserError, match=r"names mmvp_vlm, but its scores are in bf16, and `compare` has seen none"):
        judge(made.scores)
    save(apart, "reference", {*range(2, 100), 300}, "fp32; ties are image 2", "a" * 64)
    found = judge(made.scores, apart)
    sentence = "mmvp_vlm (reference): in bf16 3 of 400 items differ from fp32."
    assert found["passed"] and sentence in capsys.readouterr().out
    assert f"<p>{sentence}</p>" in (made.report / "index.html").read_text()
    save(apart, "tuned", set(range(90)), "fp32; ties are image 2", made.sha256)
    assert judge(made.scores, apart)["rules"][0]["challenger"] == 22.5, "both are there in fp32, which goes before"


@pytest.mark.parametrize(
    ("protocol", "sha256", "says"),
    [
        ("fp32; ties are image 1", "a" * 64, "they were measured in different ways"),
        ("fp32; ties are image 2", "b" * 64, "encoder_sha256 differs"),
    ],
)
def test_what_is_not_alike_is_not_held(tmp_path: Path, protocol: str, sha256: str, says: str) -> None:
    """Another protocol or another encoder says nothing about precision."""
    save(tmp_path / "bf16", "reference", {1}, f"ties are image 2; {BF16}", "a" * 64)
    save(tmp_path / "fp32", "reference", {1}, protocol, sha256)
    with pytest.raises(UserError, match=rf"mmvp_vlm \(reference\): fp32 and bf16 cannot be compared: {says}"):
        list(held_in_both([tmp_path]))
