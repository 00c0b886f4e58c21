"""The gate's truth table. Champion and challenger are read from different files."""

import ast
import math
from pathlib import Path

import pytest

from un2clip.evidence import gate
from un2clip.evidence.gate import Rule, decide
from un2clip.evidence.power import smallest_gain
from un2clip.evidence.scores import Item, Scores, load_scores

RULES = (
    Rule(benchmark="mmvp_vlm", gain_above=0.0, data_sha256=""),
    Rule(benchmark="zeroshot", gain_above=-2.0, data_sha256=""),
)
HOW = {"confidence": 0.95, "resamples": 2000, "seed": 0, "power": 0.8, "looks": 1}


def outcomes(right: int, n: int = 400) -> list[float]:
    """`right` of n are 1."""
    return [1.0] * right + [0.0] * (n - right)


def stored(folder: Path, benchmark: str, values, *, unit="%", data="d", first_id=0) -> Scores:
    """Scores that went through a file of their own."""
    items = tuple(Item(id=str(first_id + i), type="all", value=value) for i, value in enumerate(values))
    scores = Scores(benchmark=benchmark, role="tuned", method="un2clip", unit=unit, protocol="", data_sha256=data * 64,
                    encoder_sha256="e" * 64, items=items)  # fmt: skip
    path = folder / benchmark / "tuned.json"
    scores.save(path)
    return load_scores(path)


def decided(tmp_path, champion: dict, challenger: dict, rules=RULES):
    """Decide between two folders of scores."""
    read = [
        {benchmark: stored(tmp_path / who, benchmark, **(values if isinstance(values, dict) else {"values": values}))
         for benchmark, values in scores.items()}
        for who, scores in (("champion", champion), ("challenger", challenger))
    ]  # fmt: skip
    return decide(*read, rules, **HOW)


@pytest.mark.parametrize(
    ("detail", "zeroshot", "passes"),
    [
        # champion: 100 of 400 and 300 of 400; changes are all in one direction
        (130, 300, [True, True]),  # detail better, zero-shot the same
        (130, 320, [True, True]),  # both better
        (130, 298, [True, True]),  # two items lost of 400: by the exact bound at most 1.79 points
        (130, 297, [True, False]),  # three: at most 2.18
        (130, 280, [True, False]),  # 5 points lost
        (130, 293, [True, False]),  # 1.75 points lost: within 2, but not surely
        (100, 300, [False, True]),  # nothing changed: no gain
        (103, 300, [False, True]),  # three items more: not sure
        (70, 300, [False, True]),  # detail worse
        (70, 200, [False, False]),
    ],
)
def test_truth_table(tmp_path, detail, zeroshot, passes):
    """Each rule holds the worse bound of its own interval; one failure refuses the whole."""
    decision = decided(
        tmp_path,
        {"mmvp_vlm": outcomes(100), "zeroshot": outcomes(300)},
        {"mmvp_vlm": outcomes(detail), "zeroshot": outcomes(zeroshot)},
    )
    assert [finding.passed for finding in decision.findings] == passes
    assert decision.passed is all(passes)
    gain = decision.findings[0].gain
    assert gain.mean == pytest.approx((detail - 100) / 4) and gain.low <= gain.mean <= gain.high
    assert (decision.findings[0].champion, decision.findings[0].challenger) == (25.0, detail / 4)


@pytest.mark.parametrize(
    ("champion", "challenger", "says"),
    [
        (None, {"values": outcomes(130)}, "no scores of the champion"),
        ({"values": outcomes(100)}, None, "no scores of the challenger"),
        (None, None, "no scores of the champion and challenger"),
        ({"values": outcomes(100)}, {"values": [math.nan, *outcomes(130)[1:]]}, "not finite"),
        ({"values": [math.nan, *outcomes(100)[1:]]}, {"values": outcomes(130)}, "not finite"),
        ({"values": outcomes(100)}, {"values": outcomes(130), "data": "0"}, "data_sha256 differs"),
        ({"values": outcomes(100)}, {"values": outcomes(130, 399)}, "n differs (400 and 399)"),
        ({"values": outcomes(100)}, {"values": outcomes(130), "first_id": 1}, "items differ"),
        ({"values": outcomes(100)}, {"values": outcomes(130), "unit": "mse"}, "unit differs"),
        ({"values": []}, {"values": []}, "there are no items"),
    ],
    ids=["no champion", "no challenger", "neither", "nan", "nan before", "data", "n", "ids", "unit", "empty"],
)
def test_what_cannot_be_compared_is_refused(tmp_path, champion, challenger, says):
    """A rule that cannot be judged fails, with its reason in a sentence, and the other rule is judged still."""
    both = [{"zeroshot": outcomes(300)} | ({"mmvp_vlm": each} if each else {}) for each in (champion, challenger)]
    decision = decided(tmp_path, *both)
    refused, judged = decision.findings
    assert not decision.passed and not refused.passed and judged.passed
    assert says in refused.sentence and refused.sentence.startswith("mmvp_vlm cannot be judged")
    assert refused.gain is None


@pytest.mark.parametrize(("named", "passes"), [("", True), ("d" * 64, True), ("0" * 64, False)])
def test_a_rule_may_name_its_data(tmp_path, named, passes):
    """Champion and challenger agree on foreign data: a rule that names its own is not passed on them."""
    rule = Rule(benchmark="mmvp_vlm", gain_above=0.0, data_sha256=named)
    decision = decided(tmp_path, {"mmvp_vlm": outcomes(100)}, {"mmvp_vlm": outcomes(130)}, [rule])
    assert decision.passed is passes
    assert passes or "its data are dddddddddddd, but the rule asks for 000000000000" in decision.findings[0].sentence
    with pytest.raises(ValueError, match="data_sha256 must be 64 hexadecimal digits or empty, got 'd41d8'"):
        Rule(benchmark="mmvp_vlm", gain_above=0.0, data_sha256="d41d8")


@pytest.mark.parametrize(("change", "passes"), [(-0.01, True), (0.01, False), (0.0, False)])
def test_a_loss_that_falls_is_a_gain(tmp_path, change, passes):
    """For a mean squared error lower is better; a gain above 0 means that the interval excludes 0."""
    losses = [0.2 + 0.001 * i for i in range(50)]
    decision = decided(
        tmp_path,
        {"diffusion_loss": {"values": losses, "unit": "mse"}},
        {"diffusion_loss": {"values": [loss + change for loss in losses], "unit": "mse"}},
        [Rule(benchmark="diffusion_loss", gain_above=0.0, data_sha256="")],
    )
    assert decision.passed is passes
    assert decision.findings[0].gain.mean == pytest.approx(-change)


def test_kinds_of_rule_and_what_they_can_show(tmp_path):
    """Superiority and non-inferiority are named, each with the smallest gain that its samples show."""
    rules = (
        *RULES,
        Rule(benchmark="few", gain_above=0.0, data_sha256=""),
        Rule(benchmark="by", gain_above=5.0, data_sha256=""),
    )
    assert [rule.kind for rule in rules] == [
        "superiority", "non-inferiority with a margin of 2", "superiority", "superiority by 5",
    ]  # fmt: skip
    before = {"mmvp_vlm": outcomes(100), "zeroshot": outcomes(300), "few": outcomes(0, 5), "by": outcomes(100)}
    after = {"mmvp_vlm": outcomes(130), "zeroshot": outcomes(310), "few": outcomes(5, 5), "by": outcomes(130)}
    decision = decided(tmp_path, before, after, rules)
    detail, zeroshot, few, by = decision.findings
    assert "; superiority asks for a lower bound above 0: passed (a true gain of " in detail.sentence
    assert detail.sentence.endswith(" points passes in about 80 of 100 cases).")
    assert "; non-inferiority with a margin of 2 asks for a lower bound above -2: passed (a true " in zeroshot.sentence
    assert "superiority by 5 asks for a lower bound above 5: failed" in by.sentence
    assert detail.smallest_gain == pytest.approx(
        100 * smallest_gain(400, 30 / 400, bound=0, confidence=0.95, power=0.8)
    )
    assert zeroshot.smallest_gain < detail.smallest_gain < by.smallest_gain
    assert not few.passed and few.smallest_gain is None and "no outcome of its 5 samples could pass" in few.sentence


def test_a_later_look_is_judged_at_a_stricter_level(tmp_path):
    """Nine samples rise and none falls: enough for a first look, for a third and not for an eighth, and it is said."""
    folders = [{"mmvp_vlm": outcomes(100)}, {"mmvp_vlm": outcomes(109)}]
    sides = [{name: stored(tmp_path / str(i), name, each[name]) for name in each} for i, each in enumerate(folders)]
    judged = {looks: decide(*sides, RULES[:1], **(HOW | {"looks": looks})) for looks in (1, 3, 8)}
    assert [decision.passed for decision in judged.values()] == [True, True, False]
    assert judged[8].sentences[0].startswith("Encoders judged on these data since the last champion: 8;")
    assert "(99.92 % interval of the gain" in judged[8].findings[0].sentence
    assert len(judged[1].sentences) == 1 and "(95 % interval" in judged[1].findings[0].sentence


def test_without_a_rule_nothing_passes(tmp_path):
    """An empty list of rules is no permission."""
    assert not decided(tmp_path, {"zeroshot": outcomes(1)}, {"zeroshot": outcomes(400)}, []).passed


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_rule_needs_a_number(bound):
    """NaN would refuse everything and minus infinity permit it: neither is a rule."""
    with pytest.raises(ValueError, match="gain_above must be a finite number"):
        Rule(benchmark="zeroshot", gain_above=bound, data_sha256="")


def test_miou_is_judged_by_image(tmp_path):
    """Other classes are predicted, so the items differ; the images, of 150 pixels, are the same."""

    def scores(who: str, inside: float, classes: list[str], images: int = 30) -> dict[str, Scores]:
        items = tuple(
            Item(id=f"{i}@{name}", type=name, value=inside + i % 3, of=300 / len(classes) - inside - i % 3)
            for i in range(images)
            for name in classes
        )
        made = Scores(benchmark="segmentation", role="tuned", method="m", unit="mIoU", protocol="p", data_sha256="d",
                      encoder_sha256="e", items=items)  # fmt: skip
        made.save(tmp_path / who / "tuned.json")
        return {"segmentation": load_scores(tmp_path / who / "tuned.json")}

    rules = (Rule(benchmark="segmentation", gain_above=0.0, data_sha256=""),)
    champion = scores("champion", 20.0, ["sky", "cat", "dog"])
    better = decide(champion, scores("better", 40.0, ["sky", "cat"]), rules, **HOW)
    assert better.passed and better.findings[0].gain.mean == pytest.approx(100 * (1230 / 3270 - 630 / 2370))
    assert "gained 11.03 points over 30 images" in better.findings[0].sentence
    assert not decide(champion, scores("worse", 15.0, ["sky", "cat"]), rules, **HOW).passed
    fewer = decide(champion, scores("fewer", 40.0, ["sky"], images=29), rules, **HOW)
    assert not fewer.passed and "cannot be judged: the images differ" in fewer.findings[0].sentence


def test_the_gate_is_pure():
    """It imports nothing that reads, writes, or knows the time."""
    tree = ast.parse(Path(gate.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {"math", "re", "collections.abc", "dataclasses", "typing"}
    allowed |= {f"un2clip.evidence.{name}" for name in ("power", "scores", "statistics", "units")}
    assert imported <= allowed
