"""The paired bootstrap against scipy, exact enumeration and normal theory."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from un2clip.evidence.scores import Item, score_of
from un2clip.evidence.statistics import Difference, discordant, paired_difference, paired_differences


def items(values) -> list[Item]:
    return [Item(id=str(index), type="all", value=float(value)) for index, value in enumerate(values)]


def difference(before, after, *, unit="mse", confidence=0.95, resamples=10000, seed=0) -> Difference:
    return paired_difference(
        items(before), items(after), unit=unit, confidence=confidence, resamples=resamples, seed=seed
    )


@pytest.mark.parametrize("kind", ["outcomes", "losses"])
def test_agrees_with_scipys_percentile_bootstrap(kind):
    """Mean and interval are those of scipy.stats.bootstrap (percentile) on the differences."""
    rng = np.random.default_rng(3)
    before, after = rng.random((2, 300))
    if kind == "outcomes":
        before, after = np.round(before), np.round(np.clip(after + 0.1, 0, 1))
    found = difference(before, after)
    expected = scipy.stats.bootstrap(
        (after - before,), np.mean, n_resamples=10000, method="percentile", rng=1, vectorized=True
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(after - before))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert (found.n, found.changed) == (300, np.count_nonzero(after != before))


def test_agrees_with_every_possible_resample():
    """With six items all 6^6 resamples can be listed; their quantiles are the interval."""
    after = np.array([0.5, 0.9, 1.7, 2.2, 4.1, 8.0])
    exact = [np.mean(drawn) for drawn in itertools.product(after, repeat=6)]
    found = difference(np.zeros(6), after, confidence=0.9, resamples=200_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(exact, [0.05, 0.95])), abs=0.03)


def test_agrees_with_normal_theory():
    """For many items the interval is mean +- 1.96 standard errors, in the scale asked for."""
    values = np.random.default_rng(5).normal(0.3, 2.0, 4000)
    found = difference(np.zeros(4000), values, unit="%")
    half = 100 * 1.959964 * values.std() / math.sqrt(4000)
    assert found.mean == pytest.approx(100 * values.mean())
    assert found.low == pytest.approx(100 * values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(100 * values.mean() + half, abs=0.05 * half)


def test_covers_the_truth_as_often_as_it_says():
    """Of 400 samples whose true difference is 0.2, about 90 % of the 90 % intervals hold it."""
    rng = np.random.default_rng(7)
    found = [difference(np.zeros(80), rng.choice([-1, 0, 1], 80, p=[0.1, 0.6, 0.3]), confidence=0.9, resamples=400)
             for _ in range(400)]  # fmt: skip
    assert sum(each.low <= 0.2 <= each.high for each in found) / 400 == pytest.approx(0.9, abs=0.05)


def test_parts_of_a_sample_are_drawn_together():
    """An image at eight noise levels is one sample: the interval is that of the images' mean differences.

    Each image has a difference of its own that all its parts share, so drawing parts one by one would give an
    interval narrower by a factor of about sqrt(8).
    """
    rng = np.random.default_rng(11)
    shared = rng.normal(0.0, 1.0, 200)
    parts = shared[:, None] + rng.normal(0.0, 0.1, (200, 8))
    before = [Item(id=f"a@b{i}@t {part}", type=str(part), value=0.0) for i in range(200) for part in range(8)]
    after = [Item(id=item.id, type=item.type, value=value) for item, value in zip(before, parts.flat, strict=True)]
    found = paired_difference(before, after, unit="mse", confidence=0.95, resamples=10000, seed=0)
    images = difference(np.zeros(200), parts.mean(axis=1))
    assert (found.mean, found.low, found.high) == pytest.approx((images.mean, images.low, images.high), abs=0.01)
    assert (found.n, found.changed) == (200, 200)


def test_samples_of_unequal_size():
    """A sample with more items weighs more: mean and interval of the ratio, against scipy on whole samples."""
    sums, sizes = np.random.default_rng(2).normal(1, 1, 60), np.tile([1, 2, 3], 20)
    before = [Item(id=f"{i}@{part}", type="all", value=0.0) for i in range(60) for part in range(sizes[i])]
    after = [Item(id=item.id, type="all", value=sums[int(item.sample)] / sizes[int(item.sample)]) for item in before]
    found = paired_difference(before, after, unit="mse", confidence=0.9, resamples=10000, seed=0)
    expected = scipy.stats.bootstrap(
        (sums, sizes), lambda s, m, axis: s.sum(axis) / m.sum(axis), paired=True, confidence_level=0.9,
        n_resamples=10000, method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    assert found.mean == pytest.approx(sums.sum() / sizes.sum())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_equal_differences_give_that_number_and_no_nan():
    """Zero variance: the interval is the one number; equal encoders give exactly 0."""
    found = difference(np.zeros(50), np.full(50, 0.25))
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    same = difference(np.ones(50), np.ones(50))
    assert (same.mean, same.low, same.high, same.changed) == (0.0, 0.0, 0.0, 0)
    assert same.is_noise and not found.is_noise


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("n", "within_two_points"), [(100, False), (400, True)])
def test_nothing_that_changed_is_no_proof_of_no_change(parts, n, within_two_points):
    """All of n scenes alike, of one part or of several: Clopper and Pearson's 1 - 0.025 ** (1 / n) each way."""
    same = [Item(id=f"{i}@{part}", type="all", value=1.0) for i in range(n) for part in range(parts)]
    found = paired_difference(same, same, unit="%", confidence=0.95, resamples=100, seed=0)
    room = 100 * (1 - 0.025 ** (1 / n))
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, -room, room))
    assert (found.low > -2.0) is within_two_points


@pytest.mark.parametrize(("changed", "noise"), [(1, True), (5, True), (6, False), (7, False)])
def test_a_handful_of_changed_items_is_noise(changed, noise):
    """The sign test by hand: 5 heads in a row have p = 0.0625, 6 have 0.03125."""
    assert difference(np.zeros(changed), np.ones(changed)).is_noise is noise


def test_the_seed_decides():
    """Same seed, same bounds; another seed, other bounds; the mean never changes."""
    before, after = np.random.default_rng(0).random((2, 100))
    first, again, other = (difference(before, after, seed=seed, resamples=200) for seed in (1, 1, 2))
    assert first == again
    assert first.low != other.low and first.mean == other.mean


def test_negated_reads_the_other_way_round():
    """before - after has the mirrored interval."""
    found = Difference(mean=1.0, low=-0.5, high=2.0, n=3, changed=2).negated()
    assert (found.mean, found.low, found.high) == (-1.0, -2.0, 0.5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        (items([1, 0]), items([1])),
        (items([1, 0]), items([1, 0])[::-1]),
        (items([1.0, 0.5]), items([1.0, math.nan])),
        (items([1.0, math.inf]), items([1.0, 0.0])),
    ],
    ids=["none", "fewer", "other order", "nan", "inf"],
)
def test_refuses_what_is_not_a_pair(before, after):
    """No items, different items or a value that is not finite is a ValueError."""
    with pytest.raises(ValueError):
        paired_difference(before, after, unit="mse", confidence=0.95, resamples=100, seed=0)


def masks(rng, images=12, classes=4, keep=0.7) -> list[Item]:
    """Intersections and unions of an encoder that predicts some classes in some images, the first in all images.

    The last class is in one image alone: a third of all resamples lack it.
    """
    return [
        Item(id=f"{i}@{c}", type=str(c), value=float(rng.integers(0, 50)), of=float(rng.integers(50, 99)))
        for i in range(images)
        for c in range(classes)
        if c == 0 or (i == 0 if c == classes - 1 else rng.random() < keep)
    ]


def test_miou_agrees_with_a_loop_over_resampled_images():
    """Whole and classes: images drawn one by one, scored by `score_of` on copies with ids of their own, sorted."""
    rng = np.random.default_rng(4)
    before, after = masks(rng), masks(rng)
    found, of_types = paired_differences(before, after, unit="mIoU", confidence=0.9, resamples=20_000, seed=0)
    differences = {name: [] for name in ("all", *of_types)}
    for _ in range(3000):
        drawn = rng.integers(0, 12, 12)
        sides = [[item for i in drawn for item in side if item.sample == str(i)] for side in (before, after)]
        for name, seen in differences.items():
            scores = [score_of([item for item in side if name in ("all", item.type)], "mIoU") for side in sides]
            seen += [scores[1] - scores[0]] if np.isfinite(scores).all() else []
    assert of_types.pop("3").is_noise  # one image establishes no sign
    for name, difference in {"all": found, **of_types}.items():
        low, high = np.quantile(differences[name], [0.05, 0.95])
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=0.08 * (high - low)), name
    assert found.mean == pytest.approx(score_of(after, "mIoU") - score_of(before, "mIoU"))
    assert (found.n, found.changed) == (12, 12)
    assert found == paired_difference(before, after, unit="mIoU", confidence=0.9, resamples=20_000, seed=0)


def test_a_class_that_only_one_predicts():
    """It counts as 0 in that encoder's mean, and has no row, for the other encoder has no number for it."""
    before = [Item(id=f"{i}@sky", type="sky", value=5.0, of=10.0) for i in range(8)]
    after = [*before, Item(id="3@dog", type="dog", value=0.0, of=2.0)]
    found, of_types = paired_differences(before, after, unit="mIoU", confidence=0.95, resamples=1000, seed=0)
    assert found.mean == -25.0 and found.changed == 1 and found.is_noise
    assert list(of_types) == ["sky"] and of_types["sky"].mean == 0.0 and of_types["sky"].n == 8


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    # two-sided: 2 * sum_{i <= min} C(n, i) / 2^n, at most 1
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (1, 9, 22 / 1024),
        (4, 4, 1.0),
        (10, 3, 756 / 8192),
        (12, 3, 1152 / 32768),
    ],
)
def test_mcnemar_by_hand(gained, lost, p_value):
    """Exact binomial test on the discordant items; concordant ones do not matter."""
    before = items([0] * gained + [1] * lost + [1, 0, 0])
    after = items([1] * gained + [0] * lost + [1, 0, 0])
    found = discordant(before, after)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p_value == pytest.approx(p_value)


def test_mcnemar_is_for_independent_outcomes_of_0_or_1():
    """Parts of one sample, or shares of 1, have none."""
    half = items([0.5, 1.0])
    assert discordant(half, half) is None
    parts = [Item(id=f"1@{i}", type="all", value=1.0) for i in range(2)]
    assert discordant(parts, parts) is None
