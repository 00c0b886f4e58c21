"""The ranking of checkpoints: rank correlations by hand and by scipy's own, and what is drawn for the interval."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats

from un2clip.evidence.report import Comparison, Row
from un2clip.evidence.statistics import Difference, t_interval
from un2clip.methods.table import METHODS
from un2clip.study.ranking import correlate, default_design, ranking_table, rankings

NAMES = ("un2clip@50", "un2clip", "un2clip@400", "update-generator")
#: Seed -> change of the loss, change of the score, of NAMES. Seed 0: the loss ranks them as the score does, but for the
#: last; seed 1: the other way round.
CHANGES = {
    0: ([-1.0, -2.0, -3.0, -4.0], [0.5, 1.0, 2.0, -9.0]),
    1: ([-1.0, -2.0, -3.0, -4.0], [-0.5, -1.0, -2.0, -3.0]),
    2: ([-1.0, -2.0, -3.0, -0.5], [0.5, 2.0, 1.0, 0.0]),
}


def comparison(name: str, change: float) -> Comparison:
    difference = Difference(mean=change, low=change, high=change, n=1, changed=1)
    row = Row(
        type="all", reference=0.0, tuned=change, difference=difference, discordant=None, one_item=None, reading=""
    )
    hashes = {"protocol": "", "data_sha256": "", "reference_sha256": ""}
    return Comparison(benchmark=name, unit="mse" if name == "diffusion_loss" else "%", whole=row, types=(), **hashes)


RESULTS = [
    (seed, name, {"diffusion_loss": comparison("diffusion_loss", loss), "pairs": comparison("pairs", score)})
    for seed, changes in CHANGES.items()
    for name, loss, score in zip(NAMES, *changes, strict=True)
]
FOUND = {
    (len(each.checkpoints), each.correlation): each
    for each in rankings(RESULTS, "pairs", confidence=0.9, resamples=5000, seed=0)
}


def test_rank_correlations_by_hand() -> None:
    """The reference counts as (0, 0): seed 0 agrees wholly, seed 1 not at all, seed 2 has one pair of six wrong."""
    assert {each.checkpoints for (n, _), each in FOUND.items() if n == 3} == {NAMES[:3]}
    assert FOUND[3, "Spearman"].of_seed == pytest.approx({0: 1.0, 1: -1.0, 2: 1 - 6 * 2 / (4 * 15)})
    assert FOUND[3, "Kendall"].of_seed == pytest.approx({0: 1.0, 1: -1.0, 2: (5 - 1) / 6})


@pytest.mark.parametrize(("name", "oracle"), [("Spearman", scipy.stats.spearmanr), ("Kendall", scipy.stats.kendalltau)])
def test_pooled_against_scipy(name, oracle) -> None:
    """Over all points of all seeds, the reference once a seed; ties as scipy counts them."""
    losses = [-x for loss, _ in CHANGES.values() for x in (0.0, *loss)]
    scores = [x for _, score in CHANGES.values() for x in (0.0, *score)]
    assert FOUND[4, name].pooled == pytest.approx(oracle(losses, scores).statistic)


def test_intervals() -> None:
    """The mean's is Student's over the seeds; the pooled one's is that of all 27 draws of three seeds, written out."""
    each = FOUND[3, "Spearman"]
    values = list(each.of_seed.values())
    interval = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert each.mean == pytest.approx(np.mean(values))
    assert interval.low < -1 and interval.high > 1 and (each.low, each.high) == (-1, 1), "no correlation is beyond 1"
    narrow = rankings(RESULTS, "pairs", confidence=0.5, resamples=50, seed=0)[0]
    interval = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.5)
    assert (narrow.low, narrow.high) == pytest.approx((interval.low, interval.high))
    points = {seed: np.array([(0, 0), *zip(*(x[:3] for x in both), strict=True)]) for seed, both in CHANGES.items()}
    drawn = [np.concatenate([points[seed] for seed in seeds]) for seeds in itertools.product(CHANGES, repeat=3)]
    values = [scipy.stats.spearmanr(-each[:, 0], each[:, 1]).statistic for each in drawn]
    assert (each.pooled_low, each.pooled_high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=0.05)
    assert each.pooled_low < each.pooled < each.pooled_high
    again = rankings(RESULTS, "pairs", confidence=0.9, resamples=5000, seed=0)
    assert again == list(FOUND.values())


def test_the_interval_draws_whole_seeds() -> None:
    """Seeds that are all alike leave no doubt, however many their checkpoints: points alone are never drawn."""
    alike = [(seed, name, compared) for seed in range(4) for number, name, compared in RESULTS if number == 2]
    each = rankings(alike, "pairs", confidence=0.9, resamples=200, seed=0)[0]
    assert each.pooled_low == pytest.approx(each.pooled) == pytest.approx(each.pooled_high)
    assert each.pooled == pytest.approx(each.mean)


def test_nothing_to_rank() -> None:
    """No number where a measure does not vary, and no interval of one seed."""
    assert correlate("Spearman", np.array([[0.0, 0.0], [1.0, 0.0]])) is None
    assert t_interval([1.0], 0.9) == (None, None)
    one = [result for result in RESULTS if result[0] == 0]
    each = rankings(one, "pairs", confidence=0.9, resamples=50, seed=0)[0]
    assert (each.mean, each.low, each.pooled, each.pooled_low) == (pytest.approx(1.0), None, pytest.approx(1.0), None)
    assert "| +1.00 | - |" in ranking_table([each], "pairs", 0.9)


def test_the_default_design() -> None:
    """The encoder alone, through the frozen generator, held by nothing: written out by hand."""
    assert {name for name in METHODS if default_design(name)} == {
        "un2clip",
        "un2clip-longer",
        "un2clip-uniform",
        "un2clip-noised",
    }
    assert default_design("un2clip@phases.tune.steps=50") and not default_design(
        "update-generator@phases.tune.steps=50"
    )
    assert not default_design("un2clip@random")


def test_the_table_by_hand() -> None:
    """Every seed's correlation, the mean and the pooled one, each with its interval."""
    rows = ranking_table(list(FOUND.values()), "pairs", 0.9).splitlines()
    row = next(line for line in rows if "| Spearman |" in line)
    each = dataclasses.astuple(FOUND[3, "Spearman"])[3:]
    mean, low, high, pooled, pooled_low, pooled_high = each
    assert row == (
        "| un2clip@50, un2clip, un2clip@400 | Spearman | +1.00 | -1.00 | +0.80 | "
        f"{mean:+.2f} | {low:+.2f} to {high:+.2f} | {pooled:+.2f} | {pooled_low:+.2f} to {pooled_high:+.2f} |"
    )
