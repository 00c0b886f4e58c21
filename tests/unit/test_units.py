"""The table of units, and what it can hold: three rows that are not in it, added there and nowhere else."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evidence.aggregates import Floats, Mean, OfSums
from un2clip.evidence.gate import Rule, decide
from un2clip.evidence.items import Item
from un2clip.evidence.report import Comparison, compare_scores
from un2clip.evidence.scores import Scores, load_scores, mismatch, score_of
from un2clip.evidence.statistics import paired_difference, paired_differences
from un2clip.evidence.units import UNITS, Unit, get_unit
from un2clip.stages.compare import Compare, compare
from un2clip.study.seeds import table

Items = list[Item]
DOCS = Path(__file__).parents[2] / "docs/statistics.md"


class Pooled(OfSums):
    """The first of two sums over the second, over all types together."""

    def scores(self, sums: Floats, scale: float) -> Floats:
        whole = sums.sum(axis=-1, keepdims=True)
        return np.concatenate([scale * whole[0] / whole[1], scale * sums[0] / sums[1]], axis=-1)


class F1(Pooled):
    """2 TP / (2 TP + FP + FN): a true positive is 1 of 1, a false answer 0 of a half, a true negative 0 of 0."""

    def sums(self, items: Sequence[Item]) -> tuple[float, ...]:
        return math.fsum(item.value for item in items), math.fsum(item.of for item in items)


def answer(item: Item) -> str:
    cells = ((1.0, 1.0), (0.0, 0.5), (0.0, 0.0))
    return "" if (item.value, item.of) in cells else "an answer is 1 of 1, 0 of 0.5 or 0 of 0"


def rows() -> dict[str, Unit]:
    """Rows that no benchmark has yet."""
    share = dataclasses.replace(UNITS["%"], right_or_wrong=False)
    f1 = dataclasses.replace(share, name="F1", label="F1, %", change="points of F1", aggregate=F1(), out_of=True)
    made = [
        dataclasses.replace(f1, complaint=answer, study_name="F1"),
        dataclasses.replace(share, name="dB", label="PSNR, dB", note="Higher is better.", change="dB", scale=1.0,
                            digits=2, study_name="dB", study_digits=2, aggregate=Mean(), complaint=lambda item: ""),
        dataclasses.replace(share, name="FID", label="FID, lower is better", note="One number of the whole set.",
                            lower_is_better=True, aggregate=None, counts="sets"),
    ]  # fmt: skip
    return {row.name: row for row in made}


@pytest.fixture(autouse=True)
def table_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in rows().items():
        monkeypatch.setitem(UNITS, name, row)


def questions(rng: np.random.Generator, skill: float, images: int, parts: int, types: Sequence[str]) -> Items:
    """Right (1) or wrong (0) answers: `parts` questions an image, each image of one type."""
    return [
        Item(id=f"{i}@q{part}", type=types[i % len(types)], value=float(rng.random() < skill))
        for i in range(images)
        for part in range(parts)
    ]


def yes_or_no(rng: np.random.Generator, skill: float) -> Items:
    """As POPE: six questions an image, half of them to be answered yes, in three types that each image has."""
    found = []
    for i in range(40):
        for part in range(6):
            yes, right = part % 2 == 0, rng.random() < skill
            value, of = ((1.0, 1.0) if yes else (0.0, 0.0)) if right else (0.0, 0.5)
            kind = ("random", "popular", "adversarial")[part // 2]
            found.append(Item(id=f"{i}@{'yes' if yes else 'no'}{part}", type=kind, value=value, of=of))
    return found


def decibel(rng: np.random.Generator, skill: float) -> Items:
    return [Item(id=str(i), type="ab"[i % 2], value=20.0 + 10.0 * skill + float(rng.normal())) for i in range(60)]


def sklearn_f1(samples: Sequence[Items]) -> float:
    """Labels and predictions written out, and scikit-learn's own function."""
    items = [item for sample in samples for item in sample]
    labels = np.array(["@yes" in item.id for item in items])
    right = np.array([item.value == item.of for item in items])
    return 100 * float(f1_score(labels, labels == right))


def mme(samples: Sequence[Items]) -> float:
    """MME's own sum, type by type: accuracy of the questions plus accuracy of the images, in per cent."""
    total = 0.0
    for name in {items[0].type for items in samples}:
        answers = [[item.value for item in items] for items in samples if items[0].type == name]
        total += 100 * float(np.mean(np.concatenate(answers))) + 100 * float(np.mean([min(each) for each in answers]))
    return total


def groups_right(samples: Sequence[Items]) -> float:
    return 100 * sum(min(item.value for item in items) for items in samples) / len(samples)


def mean_of_sources(samples: Sequence[Items]) -> float:
    """CV-Bench's own formula, of the sources that are there: half of it 2D (ADE20K and COCO alike), half of it 3D."""
    shares: dict[str, list[float]] = {}
    for name in {item.type for items in samples for item in items}:
        values = [item.value for items in samples for item in items if item.type == name]
        shares.setdefault(name[:2], []).append(100 * float(np.mean(values)))
    return float(np.mean([np.mean(each) for each in shares.values()]))


def hallusion(rng: np.random.Generator, skill: float) -> Items:
    """As HallusionBench: sets of one to three figures times two questions."""
    return [
        Item(id=f"{i}@{f}-{q}", type=("VD chart", "VS map")[i % 2], value=float(rng.random() < skill))
        for i in range(60)
        for f in range(1 + i % 3)
        for q in range(2)
    ]


def three_accuracies(samples: Sequence[Items]) -> float:
    """aAcc, fAcc and qAcc as their authors count them, by dictionaries of lists; a sample drawn twice counts twice."""
    every: list[float] = []
    figures: dict[tuple[int, str], list[float]] = {}
    asked: dict[tuple[int, str], list[float]] = {}
    for number, items in enumerate(samples):
        for item in items:
            figure, question = item.id.split("@")[1].split("-")
            every.append(item.value)
            figures.setdefault((number, figure), []).append(item.value)
            asked.setdefault((number, question), []).append(item.value)
    both = [np.mean([min(each) for each in found.values()]) for found in (figures, asked)]
    return 100 * float(np.mean([np.mean(every), *both]))


def mean_of_decibel(samples: Sequence[Items]) -> float:
    return float(np.mean([item.value for items in samples for item in items]))


CASES: dict[str, tuple[Callable[[np.random.Generator, float], Items], Callable[[Sequence[Items]], float]]] = {
    "F1": (yes_or_no, sklearn_f1),
    "MME": (lambda rng, skill: questions(rng, skill, 60, 2, ["count", "colour", "OCR"]), mme),
    "% of groups": (lambda rng, skill: questions(rng, skill, 80, 4, ["attribute", "relation"]), groups_right),
    "% by source": (
        lambda rng, skill: questions(rng, skill, 90, 2, ["2D ADE20K", "2D COCO", "2D COCO", "3D Omni3D"]),
        mean_of_sources,
    ),
    "% a f q": (hallusion, three_accuracies),
    "dB": (decibel, mean_of_decibel),
}


def pair(unit: str) -> dict[str, Items]:
    rng = np.random.default_rng(1)
    return {"reference": CASES[unit][0](rng, 0.6), "tuned": CASES[unit][0](rng, 0.9)}


def test_a_score_that_is_never_defined_has_no_interval() -> None:
    """Nothing to find and nothing found is 0 / 0 whatever is drawn: the type is left out, the whole is one sentence."""

    def answers(right: float) -> Items:
        found = [Item(id=f"{i}@yes", type="b", value=right, of=1.0 - 0.5 * (1.0 - right)) for i in range(8)]
        return [*(Item(id=f"{i}@no", type="a", value=0.0, of=0.0) for i in range(8)), *found]

    how = {"unit": "F1", "confidence": 0.95, "resamples": 100, "seed": 0}
    whole, types = paired_differences(answers(0.0), answers(1.0), **how)
    assert (whole.mean, whole.low, whole.high) == (100.0, 100.0, 100.0) and list(types) == ["b"]
    with pytest.raises(ValueError, match=r"^the score is 0 / 0 in each of 100 draws: nothing counts in its 8 samples"):
        paired_differences(answers(0.0)[:8], answers(1.0)[:8], **how)


def scores(role: str, unit: str, items: Items, **changes) -> Scores:
    fields = {"benchmark": f"b {unit}", "role": role, "method": "m", "unit": unit, "protocol": "p", "data_sha256": "d"}
    return Scores(**(fields | {"encoder_sha256": role, "items": tuple(items)} | changes))


def whole_set(role: str, number: float, **changes) -> Scores:
    return scores(role, "FID", [], number=number, **changes)


def by_sample(items: Items) -> dict[str, Items]:
    return {name: [item for item in items if item.sample == name] for name in dict.fromkeys(i.sample for i in items)}


def of_type(items: Items, name: str | None) -> Items:
    return [item for item in items if name in (None, item.type)]


@pytest.mark.parametrize("unit", CASES)
def test_score_and_score_of_each_type(tmp_path: Path, unit: str) -> None:
    """The scores of the public functions, also from the file, are the oracle's, over all items and for each type."""
    oracle = CASES[unit][1]
    for role, items in pair(unit).items():
        scores(role, unit, items).save(tmp_path / "a.json")
        read = load_scores(tmp_path / "a.json")
        assert read == scores(role, unit, items)
        assert read.score == score_of(items, unit) == pytest.approx(oracle(list(by_sample(items).values())))
        for name, (score, n) in read.per_type().items():
            assert n == len(of_type(items, name))
            assert score == pytest.approx(oracle(list(by_sample(of_type(items, name)).values())))


@pytest.mark.parametrize("unit", CASES)
def test_intervals_are_those_of_a_naive_bootstrap(unit: str) -> None:
    """Samples drawn one by one with all their items, both encoders alike, each draw scored by the oracle."""
    sides, oracle = pair(unit), CASES[unit][1]
    drawn = {role: by_sample(items) for role, items in sides.items()}
    names, rng = list(drawn["tuned"]), np.random.default_rng(2)
    both = [scores(role, unit, items) for role, items in sides.items()]
    compared = compare_scores(*both, power=0.8, confidence=0.9, resamples=20_000, seed=0)
    assert [row.type for row in compared.types] == list(dict.fromkeys(item.type for item in sides["tuned"]))
    for row in (compared.whole, *compared.types):
        name = None if row is compared.whole else row.type
        parts = {role: [of_type(each[i], name) for i in names] for role, each in drawn.items()}
        kept = [i for i, items in enumerate(parts["tuned"]) if items]
        differences = []
        for _ in range(600):
            chosen = rng.choice(kept, len(kept))
            before, after = (oracle([parts[role][i] for i in chosen]) for role in ("reference", "tuned"))
            differences.append(after - before)
        low, high = np.quantile(differences, [0.05, 0.95])
        found = row.difference
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low)), row.type
        assert found.mean == pytest.approx(row.tuned - row.reference) and found.n == len(kept)
        assert (row.reading, row.discordant, row.one_item) == ("better", None, None)
    alone = paired_difference(*sides.values(), unit=unit, confidence=0.9, resamples=20_000, seed=0)
    assert alone == compared.whole.difference


@pytest.mark.parametrize("unit", CASES)
def test_the_gate_judges_it(unit: str) -> None:
    """A gain beyond the interval passes, the same pair the other way round does not, in the unit's own words."""
    before, after = (scores(role, unit, items) for role, items in pair(unit).items())
    rule, how = (
        Rule(benchmark="b", gain_above=0.0, data_sha256=""),
        {"confidence": 0.95, "resamples": 2000, "seed": 0, "power": 0.8, "looks": 1},
    )
    passed = decide({"b": before}, {"b": after}, [rule], **how)
    assert passed.passed and passed.findings[0].gain.mean == pytest.approx(after.score - before.score)
    assert f" {UNITS[unit].change} over " in passed.findings[0].sentence
    refused = decide({"b": after}, {"b": before}, [rule], **how)
    assert not refused.passed and "lost" in refused.findings[0].sentence


def test_mme_reaches_its_maximum() -> None:
    """Ten types, all right: 100 + 100 each, 2000 in all; one question wrong costs half an image and the image."""
    items = [Item(id=f"{t} {i}@q{q}", type=str(t), value=1.0) for t in range(10) for i in range(10) for q in range(2)]
    assert score_of(items, "MME") == 2000.0
    items[0] = dataclasses.replace(items[0], value=0.0)
    assert score_of(items, "MME") == pytest.approx(2000.0 - 100 / 20 - 100 / 10)


def test_a_group_is_right_as_a_whole() -> None:
    """Three of four questions right are no group; two groups of three are 66.7 %."""
    rights = ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    items = [Item(id=f"{i}@q{q}", type="a", value=v) for i, each in enumerate(rights) for q, v in enumerate(each)]
    assert score_of(items, "% of groups") == pytest.approx(200 / 3)


def test_questions_that_count_together_are_right_or_wrong() -> None:
    """Of a mean over seeds nobody can tell whether all were right, so it is refused."""
    with pytest.raises(ValueError, match="outcomes that count in groups must be 0 or 1, got item 1@a"):
        scores("tuned", "% of groups", [Item(id="1@a", type="a", value=0.5)])


def test_an_outcome_that_the_row_does_not_have_is_refused() -> None:
    """The row says what an item may be, also in a file."""
    with pytest.raises(ValueError, match=r"an answer is 1 of 1, 0 of 0\.5 or 0 of 0, got item 7"):
        scores("tuned", "F1", [Item(id="7", type="a", value=0.5, of=1.0)])
    with pytest.raises(ValueError, match="outcomes in dB are out of 1, got item 7"):
        scores("tuned", "dB", [Item(id="7", type="a", value=30.0, of=2.0)])


def test_a_number_of_the_whole_set_has_no_items(tmp_path: Path) -> None:
    """It is saved and read like any other scores file; items, or no number, are refused."""
    whole_set("tuned", 12.5).save(tmp_path / "tuned.json")
    content = json.loads((tmp_path / "tuned.json").read_text())
    assert (content["score"], content["n"], content["per_type"], content["items"]) == (12.5, 0, {}, [])
    assert load_scores(tmp_path / "tuned.json") == whole_set("tuned", 12.5)
    with pytest.raises(ValueError, match="scores in FID are a number without items"):
        scores("tuned", "FID", [])
    with pytest.raises(ValueError, match="scores in FID are a number without items"):
        scores("tuned", "FID", [Item(id="1", type="a", value=1.0)], number=12.5)
    with pytest.raises(ValueError, match="scores in % are of items"):
        scores("tuned", "%", [Item(id="1", type="a", value=1.0)], number=100.0)
    (tmp_path / "tuned.json").write_text(json.dumps(content | {"n": 1}))
    with pytest.raises(UserError, match="edited by hand"):
        load_scores(tmp_path / "tuned.json")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (whole_set, None),
        (lambda role, number: whole_set(role, math.nan), "the number of m is not finite"),
        (lambda role, number: whole_set(role, number, data_sha256="x"), "data_sha256 differs"),
    ],
    ids=["finite", "nan", "data"],
)
def test_when_two_of_them_may_be_compared(other, says: str | None) -> None:
    """Of the same data, and finite."""
    reason = mismatch(whole_set("reference", 14.0), other("tuned", 12.5))
    assert reason is None if says is None else says in reason


def test_it_may_never_be_a_rule() -> None:
    """However large the gain, the finding fails and says why, also where one side has no scores."""
    rule = Rule(benchmark="fid", gain_above=-100.0, data_sha256="")
    how = {"confidence": 0.95, "resamples": 200, "seed": 0, "power": 0.8, "looks": 1}
    for champion in ({"fid": whole_set("reference", 90.0)}, {}):
        (finding,) = decide(champion, {"fid": whole_set("tuned", 1.0)}, [rule], **how).findings
        assert not finding.passed and finding.gain is None
        assert finding.sentence == (
            "fid cannot be judged: FID is one number of the whole set: it has no interval, and may never be a rule."
        )


def test_there_is_no_paired_difference_and_no_score_of_items() -> None:
    """What asks for items is told that there are none."""
    items = [Item(id="1", type="a", value=1.0)]
    with pytest.raises(ValueError, match="FID is a number of the whole set"):
        paired_difference(items, items, unit="FID", confidence=0.95, resamples=100, seed=0)
    with pytest.raises(ValueError, match="FID is a number of the whole set"):
        score_of(items, "FID")


def test_the_report_and_the_study_show_every_row(tmp_path: Path, monkeypatch, capsys) -> None:
    """A benchmark in each of these units, by the stage itself: page, JSON, the shell's table, the table of seeds."""
    monkeypatch.setattr("un2clip.evidence.table.WIDTH", 200)  # so that no name is folded
    for unit in CASES:
        for role, items in pair(unit).items():
            scores(role, unit, items).save(tmp_path / "scores" / unit / f"{role}.json")
    for role, number in (("reference", 14.0), ("tuned", 12.5)):
        whole_set(role, number).save(tmp_path / "scores/FID" / f"{role}.json")
    (tmp_path / "encoder").mkdir()
    lineage = {"method": "x", "seed": 0, "params": {}, "steps_done": 1, "corrupt": 0, "complete": True}
    lineage |= {"parents": {"clip": "reference"}, "encoder_sha256": "tuned", "text_sha256": "x"}
    (tmp_path / "encoder/lineage.json").write_text(json.dumps(lineage))
    compare(Compare(confidence=0.95, power=0.8, resamples=500), seed=0, scores=[tmp_path / "scores"],
            encoder=tmp_path / "encoder", reconstructions=tmp_path, report=tmp_path / "report")  # fmt: skip
    made = {each["unit"]: each for each in json.loads((tmp_path / "report/report.json").read_text())["benchmarks"]}
    page, printed = (tmp_path / "report/index.html").read_text(), capsys.readouterr().out
    for unit, row in ((unit, UNITS[unit]) for unit in (*CASES, "FID")):
        assert row.label in page and row.note in page and f"“n” counts {row.counts}" in page
        assert f"b {unit} ({unit})" in printed
        assert made[unit]["whole"]["difference"]["mean"] == pytest.approx(
            made[unit]["whole"]["tuned"] - made[unit]["whole"]["reference"]
        )
    found = made["FID"]["whole"]
    assert (found["reference"], found["tuned"], found["reading"]) == (14.0, 12.5, "unknown")
    assert found["difference"] == {"mean": -1.5, "low": None, "high": None, "n": 1, "changed": 1}
    assert 'interval <span class="together">none</span>' in page and "one item" not in page
    assert f"{made['dB']['whole']['tuned']:.2f}" in page
    compared = {unit: build(Comparison, each, "report") for unit, each in made.items()}
    lines = table([(seed, "m", compared) for seed in (0, 1)], 0.95)
    assert "### dB (dB), n = 60 a seed" in lines and "14.0 → 12.5 (-1.5) |" in lines and "| 0 of 2 |" in lines


def test_an_unknown_unit_is_refused_with_the_list() -> None:
    """In scores, in statistics, and in a report that is read back."""
    known = ", ".join(UNITS)
    for refused in (
        lambda: get_unit("points"),
        lambda: scores("tuned", "points", []),
        lambda: score_of([], "points"),
        lambda: paired_difference([], [], unit="points", confidence=0.95, resamples=100, seed=0),
    ):
        with pytest.raises(ValueError, match=f"unit must be one of {known}, got 'points'"):
            refused()
    before, after = (scores(role, "dB", items) for role, items in pair("dB").items())
    content = compare_scores(before, after, power=0.8, confidence=0.9, resamples=100, seed=0).as_json()
    with pytest.raises(UserError, match=r"report\.unit must be one of .*, got 'points'"):
        build(Comparison, content | {"unit": "points"}, "report")


def test_the_page_has_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/statistics.md lists the rows as they are."""
    monkeypatch.undo()  # without the rows of this file
    wanted = ["| unit | on the page | better is | n counts | a gain is in | both encoders have the same | McNemar |"]
    wanted.append("|---|---|---|---|---|---|---|")
    for name, row in UNITS.items():
        better, same = "lower" if row.lower_is_better else "higher", "items" if row.paired else row.counts
        mcnemar = "yes" if row.right_or_wrong else "no"
        wanted.append(f"| {name} | {row.label} | {better} | {row.counts} | {row.change} | {same} | {mcnemar} |")
    assert list(UNITS)[:3] == ["%", "mse", "mIoU"] and "\n".join(wanted) in DOCS.read_text()
