"""Several seeds: the spread by hand and against scipy, and the refusal to mix what does not belong together."""

import json
import re

import pytest
import scipy.stats

from un2clip.__main__ import main
from un2clip.errors import UserError
from un2clip.evidence.report import compare_scores
from un2clip.evidence.scores import Item, Scores
from un2clip.stages.compare import Compare, compare
from un2clip.study.seeds import aggregate, spread, summary, table

BEFORE = [1.0] * 20 + [0.0] * 20


def scores(role: str, values: list[float], **changes) -> Scores:
    items = tuple(Item(id=str(i), type="ab"[i % 2], value=value) for i, value in enumerate(values))
    fields = {"benchmark": "pairs", "role": role, "method": "m", "unit": "%", "protocol": "fp32", "data_sha256": "d"}
    return Scores(**(fields | {"encoder_sha256": role, "items": items} | changes))


def compared(after: list[float]):
    return compare_scores(
        scores("reference", BEFORE), scores("tuned", after), confidence=0.95, resamples=500, power=0.8, seed=0
    )  # fmt: skip


def more(k: int) -> list[float]:
    """k items of 40 more are right."""
    return [1.0] * (20 + k) + [0.0] * (20 - k)


def test_spread_against_scipy():
    """Gains of 2, 4 and 8 items of 40: mean, deviation and t interval are scipy's; only 8 is beyond the noise."""
    gains = [100 * k / 40 for k in (2, 4, 8)]
    found = spread([compared(more(k)).whole for k in (2, 4, 8)], 0.9)
    interval = scipy.stats.ttest_1samp(gains, 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(35 / 3) and found.deviation == pytest.approx(scipy.stats.tstd(gains))
    assert (found.certain, found.seeds) == (1, 3)


def test_one_seed_has_no_spread():
    """A deviation of one number would be 0, and would look like certainty."""
    found = spread([compared(more(8)).whole], 0.95)
    assert (found.deviation, found.low, found.high) == (None, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        spread([], 0.95)


def test_table_by_hand():
    """Differences of +20 and 0 points: mean 10, deviation 14.1, and with one degree of freedom t = 12.7."""
    results = [(seed, "m", {"pairs": compared(more(k))}) for seed, k in ((0, 8), (1, 0))]
    lines = table(results, 0.95).splitlines()
    row = next(line for line in lines if line.startswith("| m |"))
    assert re.match(
        r"\| m \| 50\.0 → 70\.0 \(\+20\.0, .*\) \| 50\.0 → 50\.0 \(\+0\.0, .*\) "
        r"\| \+10\.0 \| 14\.1 \| -117\.1 to \+137\.1 \| 1 of 2 \|$",
        row,
    )
    assert lines[-1] == "| m | 50.0 → 60.0 | 50.0 → 60.0 |"


def test_a_loss_is_shown_in_thousandths():
    """0.25 to 0.24875 on every item of both seeds: -1.250 thousandths, with three decimals."""
    pair = [scores(role, [loss] * 40, unit="mse") for role, loss in (("reference", 0.25), ("tuned", 0.24875))]
    compared = compare_scores(*pair, confidence=0.95, resamples=500, power=0.8, seed=0)
    lines = table([(seed, "m", {"loss": compared}) for seed in (0, 1)], 0.95)
    assert lines.startswith("### loss (thousandths of a squared error, less is better), n = 40 a seed")
    cell = "250.000 → 248.750 (-1.250, -1.250 to -1.250)"
    assert f"| m | {cell} | {cell} | -1.250 | 0.000 | -1.250 to -1.250 | 2 of 2 |" in lines


def test_summary_by_hand():
    """A line a benchmark and method, with the mean of both encoders over the seeds that it has, and their spread."""
    results = [(seed, name, {"pairs": compared(more(k))}) for seed, name, k in ((0, "m", 8), (1, "m", 0), (1, "n", 4))]
    first, second = summary(results, 0.95)
    assert (first["benchmark"], first["unit"], first["method"]) == ("pairs", "%", "m")
    assert (first["reference"], first["tuned"], first["mean"]) == pytest.approx((50, 60, 10))
    assert (first["seeds"], first["certain"]) == (2, 1) and first["low"] == pytest.approx(-117.1, abs=0.05)
    assert (second["method"], second["mean"], second["seeds"], second["low"]) == ("n", 10, 1, None)


@pytest.fixture
def report(tmp_path):
    """Make the report of one seed by the stage itself; give the path of its report.json."""

    def make(seed: int, k: int, *, method="m", lr=1e-5, reference="reference", **changes):
        folder = tmp_path / f"{method}-{seed}-{len(list(tmp_path.iterdir()))}"
        (folder / "encoder").mkdir(parents=True)
        (folder / "encoder" / "lineage.json").write_text(json.dumps(
            {"method": method, "seed": seed, "params": {"lr": lr}, "parents": {"clip": reference},
             "encoder_sha256": "tuned", "text_sha256": "", "steps_done": 1, "corrupt": 0, "complete": True}
        ))  # fmt: skip
        for role, values, sha256 in (("reference", BEFORE, reference), ("tuned", more(k), "tuned")):
            scores(role, values, encoder_sha256=sha256, **changes).save(folder / "scores" / f"{role}.json")
        compare(Compare(confidence=0.95, power=0.8, resamples=500), seed=0, scores=[folder / "scores"],
                encoder=folder / "encoder", reconstructions=folder, report=folder / "report")  # fmt: skip
        return folder / "report" / "report.json"

    return make


def test_aggregates_separate_reports(report, capsys):
    """`un2clip aggregate` gives the table of the study, seeds in order, from files or their folders."""
    reports = [report(4, 0), report(2, 8).parent]
    capsys.readouterr()
    assert main(["aggregate", *map(str, reports)]) == 0
    printed = capsys.readouterr().out
    assert "| seed 2 | seed 4 | mean difference |" in printed and "| +10.0 | 14.1 |" in printed


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"method": "n"}, "but method does: m in .*, n in"),
        ({"lr": 1e-4}, "but parameters does"),
        ({"data_sha256": "e"}, "but data of pairs does: d in .*, e in"),
        ({"protocol": "fp16"}, "but protocol of pairs does: fp32 in .*, fp16 in"),
        ({"benchmark": "others"}, "but benchmarks does"),
        ({"reference": "other"}, "but reference of pairs does: reference in .*, other in"),
        ({"seed": 1}, "seed 1 is there twice"),
    ],
)
def test_refuses_to_mix(report, other, says):
    """Seeds of two methods, settings, data sets or protocols have no common mean."""
    with pytest.raises(UserError, match=says):
        aggregate([report(1, 2), report(**({"seed": 2, "k": 4} | other))])


def test_one_report_is_no_spread(report):
    """One seed is what its own report says already."""
    with pytest.raises(UserError, match="at least two seeds, got 1"):
        aggregate([report(1, 2)])
