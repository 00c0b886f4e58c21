"""Exact bounds by enumeration, and the smallest gain against simulation with the project's own intervals."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from un2clip.evidence.exact import FEW, gain_bounds, share_bounds, sign_test
from un2clip.evidence.items import Item
from un2clip.evidence.power import fewest, never, smallest_gain, smallest_shown
from un2clip.evidence.statistics import Difference, corrected, discordant, paired_difference


def outcomes(rose: int, fell: int, n: int) -> tuple[list[Item], list[Item]]:
    """Before and after: so many right only after, only before, and both."""
    values = [(0.0, 1.0)] * rose + [(1.0, 0.0)] * fell + [(1.0, 1.0)] * (n - rose - fell)
    sides = zip(*values, strict=True)
    return tuple([Item(id=str(i), type="all", value=value) for i, value in enumerate(side)] for side in sides)


def measured(rose: int, fell: int, n: int, *, confidence=0.95, resamples=400, looks=1) -> Difference:
    how = {"unit": "%", "confidence": confidence, "resamples": resamples, "seed": 0, "looks": looks}
    return paired_difference(*outcomes(rose, fell, n), **how)


@pytest.mark.parametrize("n", [7, 30])
@pytest.mark.parametrize("confidence", [0.95, 0.9875])
def test_an_exact_bound_fails_no_more_often_than_it_says(n, confidence):
    """Every outcome of n samples, weighed by its probability: whatever is true, the lower bound is seldom above it."""
    bounds = {
        (rose, fell): gain_bounds(rose, fell, n, confidence)[0]
        for rose, fell in itertools.product(range(n + 1), repeat=2)
        if rose + fell <= n
    }
    for changes, rises in itertools.product((0.02, 0.1, 0.3, 0.8), (0.0, 0.25, 0.5, 0.75, 1.0)):
        gain = changes * (2.0 * rises - 1.0)
        missed = sum(
            binom.pmf(rose + fell, n, changes) * binom.pmf(rose, rose + fell, rises)
            for (rose, fell), low in bounds.items()
            if low > gain + 1e-12
        )
        assert missed <= (1.0 - confidence) / 2.0, (changes, rises)


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_bounds_of_a_share_are_scipys(k):
    """Clopper and Pearson's, as scipy finds them by bisection."""
    expected = binomtest(k, 12).proportion_ci(0.95, method="exact")
    assert share_bounds(k, 12, 0.95) == pytest.approx((expected.low, expected.high))


def test_few_changes_are_judged_as_mcnemar_does():
    """The interval excludes 0 just where the exact test's p is below 5 %, and mirrors when read the other way."""
    n = 400
    for rose, fell in itertools.product(range(FEW), repeat=2):
        if rose + fell < FEW:
            low, high = gain_bounds(rose, fell, n, 0.95)
            assert (low > 0.0 or high < 0.0) == (sign_test(rose, fell) < 0.05), (rose, fell)
            assert gain_bounds(fell, rose, n, 0.95) == pytest.approx((-high, -low))
            assert low <= (rose - fell) / n <= high


def test_the_interval_of_a_score_is_the_exact_one_below_twenty_changes():
    """By hand: with nothing changed 1 - 0.025^(1/n); six of 400 that all rise. From twenty on it is the bootstrap's."""
    still = measured(0, 0, 400)
    assert (still.mean, still.low, still.high) == pytest.approx((0.0, -0.918, 0.918), abs=1e-3)
    six = measured(6, 0, 400)
    assert six.low == pytest.approx(100 * (2 * 0.025 ** (1 / 6) - 1) * 0.005523, rel=1e-3) and not six.is_noise
    assert measured(14, 5, 400).is_noise and measured(14, 5, 400).low == 100 * gain_bounds(14, 5, 400, 0.95)[0]
    many = measured(25, 5, 400, resamples=20_000)
    half = 100 * 1.96 * math.sqrt((30 / 400 - 0.05**2) / 400)
    assert (many.low, many.high) == pytest.approx((5 - half, 5 + half), abs=0.25)  # one item


def test_other_outcomes_than_right_and_wrong_need_the_sign_test():
    """Losses of eight images, one of which rises: a bootstrap excludes 0, the sign test (p = 0.07) does not."""
    losses = [Item(id=str(i), type="all", value=1.0) for i in range(8)]
    lower = [Item(id=str(i), type="all", value=0.5 + 0.51 * (i == 0)) for i in range(8)]
    found = paired_difference(losses, lower, unit="mse", confidence=0.95, resamples=2000, seed=0)
    assert found.mean < -0.4 and found.high == 0.0 and found.is_noise
    all_lower = [Item(id=str(i), type="all", value=0.5) for i in range(8)]
    assert not paired_difference(losses, all_lower, unit="mse", confidence=0.95, resamples=2000, seed=0).is_noise


@pytest.mark.parametrize(
    ("n", "discordance", "margin"), [(135, 0.15, 0.0), (135, 0.35, 0.0), (135, 0.35, 0.02), (400, 0.1, 0.0)]
)
def test_the_smallest_gain_passes_as_often_as_it_says(n, discordance, margin):
    """1,500 encoders with that true gain, each through the intervals that the gate has: about four in five pass.

    The closed form leaves out that samples are whole, so up to six in a hundred fewer pass.
    """
    gain = smallest_gain(n, discordance, bound=-margin, confidence=0.95, power=0.8)
    rng = np.random.default_rng(0)
    changed = rng.binomial(n, discordance, 1500)
    drawn = list(zip(rng.binomial(changed, (1.0 + gain / discordance) / 2.0).tolist(), changed.tolist(), strict=True))
    passed = {(up, all_): measured(up, all_ - up, n, resamples=1000).low > -100 * margin for up, all_ in set(drawn)}
    assert np.mean([passed[each] for each in drawn]) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("n", "points"), [(135, (9.0, 11.7, 13.9)), (2000, (2.4, 3.1, 3.7))])
def test_the_smallest_gain_in_a_table(n, points):
    """Exact binomial powers at 15, 25 and 35 % changed pairs, found by another script: 9, 12, 14 and 2.4, 3.1, 3.7."""
    found = [100 * smallest_gain(n, d, bound=0.0, confidence=0.95, power=0.8) for d in (0.15, 0.25, 0.35)]
    assert found == pytest.approx(points, abs=0.1)


def test_a_handful_of_samples():
    """Seven samples need nearly all of them; five never do, and no benchmark shows a gain above the whole of it."""
    (gain,) = (smallest_gain(7, d, bound=0.0, confidence=0.95, power=0.8) for d in (0.1,))
    assert binom.sf(5, 7, gain) == pytest.approx(0.8)  # six or seven of them rise
    assert smallest_gain(5, 0.5, bound=0.0, confidence=0.95, power=0.8) == math.inf
    assert [fewest(level) for level in (0.9, 0.95, 0.99)] == [5, 6, 8]
    for n in range(1, 30):
        best = paired_difference(*outcomes(n, 0, n), unit="%", confidence=0.95, resamples=100, seed=0)
        for bound in (-0.02, 0.0, 0.1, 0.99):
            assert never(n, bound, confidence=0.95) == (best.low <= 100 * bound), (n, bound)


def test_a_small_gain_of_few_changes_is_no_more_than_what_changes():
    """With next to no discordance the gain must make it: six risen of 135 are wanted, and none falls."""
    gain = smallest_gain(135, 0.001, bound=0.0, confidence=0.95, power=0.8)
    assert gain == pytest.approx(0.0577, abs=0.003)
    assert binom.sf(5, 135, gain) == pytest.approx(0.8)


def test_other_units_by_the_interval_that_was_seen():
    """Losses: the standard error is a half interval / 1.96, and (1.96 + 0.84) of it are shown four times in five."""
    seen = Difference(mean=-0.1, low=-0.3, high=0.1, n=50, changed=50)
    how = {"right_or_wrong": False, "confidence": 0.95, "power": 0.8}
    error = 0.2 / norm.isf(0.025)
    expected = (norm.isf(0.025) + norm.isf(0.2)) * error
    assert smallest_shown(seen, "mse", bound=0.0, **how) == pytest.approx(expected)
    assert smallest_shown(seen, "mse", bound=-0.5, **how) == pytest.approx(expected - 0.5)
    few = Difference(mean=1.0, low=0.0, high=2.0, n=5, changed=5)
    assert smallest_shown(few, "mse", bound=0.0, **how) == math.inf
    assert smallest_shown(few, "mse", bound=-3.0, **how) < 3.0
    same = Difference(mean=0.0, low=0.0, high=0.0, n=48, changed=0)
    assert math.isnan(smallest_shown(same, "mse", bound=-0.5, **how)), "no width was seen, so nothing is known of it"


def test_the_level_of_later_looks():
    """All of them together err less than 1.65 times as often as a first one alone, however many there are."""
    assert corrected(0.95, 1) == 0.95 and corrected(0.95, 2) == pytest.approx(0.9875)
    assert sum(1.0 - corrected(0.95, look) for look in range(1, 10_000)) < 0.05 * math.pi**2 / 6


def test_a_later_look_is_held_to_wider_bounds():
    """By the normal law's ratio where the bootstrap counts, by the exact bounds at that level where few changed."""
    first, fourth = (measured(80, 40, 1000, resamples=4000, looks=looks) for looks in (1, 4))
    ratio = norm.isf(0.05 / 16 / 2) / norm.isf(0.025)
    assert fourth.mean - fourth.low == pytest.approx(ratio * (first.mean - first.low))
    assert measured(7, 0, 135, looks=2).low == 100 * gain_bounds(7, 0, 135, 0.9875)[0]
    assert not measured(6, 0, 135).is_noise and measured(6, 0, 135, looks=2).is_noise
    assert discordant(*outcomes(6, 0, 135)).p_value == 0.03125
