"""How sure is the difference of two encoders that saw the same samples: paired bootstrap, exact McNemar."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from un2clip.evidence.scores import SCALE, Item, Unit, by_type, score_of

_CELLS = 4_000_000  # numbers drawn at once: 32 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of two scores and its interval, all in the benchmark's unit.

    Attributes:
        mean: score of `after` less score of `before`.
        low, high: bounds of the interval.
        n: samples: items, where the parts of one sample (`Item.sample`) count once.
        changed: samples on which the two differ.
    """

    mean: float
    low: float
    high: float
    n: int
    changed: int

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0: no difference was shown."""
        return self.low <= 0.0 <= self.high

    def negated(self) -> "Difference":
        """The difference read the other way round, `before - after`."""
        return Difference(mean=-self.mean, low=-self.high, high=-self.low, n=self.n, changed=self.changed)


@dataclass(frozen=True, kw_only=True)
class Discordant:
    """Items that only one of the two encoders has right, and the exact McNemar test of them.

    Attributes:
        gained: right after, wrong before.
        lost: right before, wrong after.
        p_value: two-sided, of a fair coin falling `gained` to `lost` or further off (McNemar 1947, the exact
            form: a binomial test on the discordant pairs). 1 where there is none.
    """

    gained: int
    lost: int
    p_value: float


def paired_difference(
    before: Sequence[Item], after: Sequence[Item], *, unit: Unit, confidence: float, resamples: int, seed: int
) -> Difference:
    """Difference of two scores on the same samples, with a percentile bootstrap interval over samples.

    The parts of one sample are not independent, so a sample is drawn with all its items. In mIoU an item that only
    one encoder has stands against a union of 0.

    A percentile interval is too narrow for a handful of samples: with k samples changed, all in one direction,
    a fair coin does the same with probability 2 * 0.5^k. As long as that is above `1 - confidence` (k < 6 for
    95 %) no sign is established, and the interval is widened to take in 0.

    Args:
        before, after: the same items in the same order; in mIoU, those of the same images.
        unit: of the items; mIoU is a ratio of sums for each class, then a mean; the others are a mean over items.
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the draw; the same seed gives the same interval.

    Raises:
        ValueError: no items, different items, or a value that is not finite.
    """
    if unit == "mIoU":
        return _miou_differences(before, after, confidence, resamples, seed)[0]
    return _mean_difference(before, after, SCALE[unit], confidence, resamples, seed)


def paired_differences(
    before: Sequence[Item], after: Sequence[Item], *, unit: Unit, confidence: float, resamples: int, seed: int
) -> tuple[Difference, dict[str, Difference]]:
    """`paired_difference` over all items, and for each type, in the order of `after`.

    A class that only one encoder ever predicted, and that no label has, has no difference and is left out.
    """
    if unit == "mIoU":
        return _miou_differences(before, after, confidence, resamples, seed)

    def mean_difference(before: Sequence[Item], after: Sequence[Item]) -> Difference:
        return _mean_difference(before, after, SCALE[unit], confidence, resamples, seed)

    types = by_type(before)
    of_types = {name: mean_difference(types.get(name, []), items) for name, items in by_type(after).items()}
    return mean_difference(before, after), of_types


def discordant(before: Sequence[Item], after: Sequence[Item]) -> Discordant | None:
    """Exact McNemar test; None unless every item is a sample of its own with an outcome of 0 or 1.

    Args:
        before, after: the same items in the same order, of a benchmark in %.
    """
    if len({item.sample for item in after}) != len(after) or any(i.value not in (0.0, 1.0) for i in (*before, *after)):
        return None
    pairs = list(zip(before, after, strict=True))
    gained, lost = (sum(b.value - a.value == sign for a, b in pairs) for sign in (1.0, -1.0))
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Discordant(gained=gained, lost=lost, p_value=p_value)


def _mean_difference(
    before: Sequence[Item], after: Sequence[Item], scale: float, confidence: float, resamples: int, seed: int
) -> Difference:
    """Mean over items. Samples of one difference are drawn together: exact, and quick for outcomes of 0 and 1.

    Where all differences are equal the interval is that one number (bias-corrected variants give NaN there).
    """
    if [item.id for item in before] != [item.id for item in after]:
        raise ValueError(f"paired items must be the same in the same order, got {len(before)} and {len(after)}")
    differences = scale * np.array([b.value - a.value for a, b in zip(before, after, strict=True)], dtype=np.float64)
    _check_finite(differences)
    index = {name: i for i, name in enumerate(dict.fromkeys(item.sample for item in before))}
    of_sample = np.array([index[item.sample] for item in before])
    per_sample = np.stack([np.bincount(of_sample, differences), np.bincount(of_sample)], axis=1)  # (n, 2): sum, items
    distinct, counts = np.unique(per_sample, axis=0, return_counts=True)
    drawn = _resample(distinct, counts, lambda totals: totals[:, :1] / totals[:, 1:], resamples, seed)
    changed = int(np.count_nonzero(np.bincount(of_sample, np.abs(differences))))
    return _difference(math.fsum(differences) / len(differences), drawn[:, 0], len(index), changed, confidence)


def _miou_differences(
    before: Sequence[Item], after: Sequence[Item], confidence: float, resamples: int, seed: int
) -> tuple[Difference, dict[str, Difference]]:
    """Over all classes and for each class, from one and the same draw of images.

    A resample without a class leaves it out of its mean; its own interval is over the resamples that have it.
    """
    images = {name: i for i, name in enumerate(dict.fromkeys(item.sample for item in (*before, *after)))}
    names = list(dict.fromkeys(item.type for item in (*after, *before)))
    column = {name: i for i, name in enumerate(names)}
    pixels = np.zeros((len(images), 2, 2, len(names)))  # image; before, after; intersection, union; class
    for side, items in enumerate((before, after)):
        for item in items:
            pixels[images[item.sample], side, :, column[item.type]] = item.value, item.of
    _check_finite(pixels)

    def differences(totals: Floats) -> Floats:
        """(R, 4 x classes) sums of pixels -> (R, 1 + classes) differences, that of the mean first."""
        sides = totals.reshape(-1, 2, 2, len(names))
        with np.errstate(invalid="ignore"):
            iou = SCALE["mIoU"] * sides[:, :, 0] / sides[:, :, 1]  # (R, 2, classes); NaN: the resample lacks the class
            mean = np.nansum(iou, axis=2, keepdims=True) / np.isfinite(iou).sum(axis=2, keepdims=True)
        both = np.concatenate([mean, iou], axis=2)
        return both[:, 1] - both[:, 0]

    drawn = _resample(pixels.reshape(len(images), -1), np.ones(len(images)), differences, resamples, seed)
    differ = np.abs(pixels[:, 0] - pixels[:, 1]).sum(axis=1) > 0.0  # (images, classes)
    seen = pixels[:, :, 1].sum(axis=1) > 0.0
    found = {}
    types = by_type(before), by_type(after)
    for name, i in column.items():
        if name in types[0] and name in types[1]:
            mean = score_of(types[1][name], "mIoU") - score_of(types[0][name], "mIoU")
            found[name] = _difference(mean, drawn[:, 1 + i], seen[:, i].sum(), differ[:, i].sum(), confidence)
    mean = score_of(after, "mIoU") - score_of(before, "mIoU")
    return _difference(mean, drawn[:, 0], len(images), differ.any(axis=1).sum(), confidence), found


def _resample(
    rows: NDArray[Any], counts: NDArray[Any], statistic: Callable[[Floats], Floats], resamples: int, seed: int
) -> Floats:
    """The statistic of `resamples` draws of counts.sum() samples with replacement, (resamples, ...).

    Args:
        rows: (k, m) what each of k distinct samples adds to the sums.
        counts: (k,) how many samples have that row; drawing says how often each occurs, so no row is copied.
        statistic: (R, m) sums of R resamples -> one row of numbers each.
    """
    rng = np.random.default_rng(seed)
    n = int(counts.sum())
    step = max(1, _CELLS // max(rows.shape))
    return np.concatenate([
        statistic(rng.multinomial(n, counts / n, size=min(step, resamples - first)) @ rows)
        for first in range(0, resamples, step)
    ])  # fmt: skip


def _difference(mean: float, resampled: Floats, n: int, changed: int, confidence: float) -> Difference:
    tail = (1.0 - confidence) / 2.0
    low, high = map(float, np.quantile(resampled[np.isfinite(resampled)], [tail, 1.0 - tail]))
    if 2.0 * 0.5 ** int(changed) > 1.0 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(mean=mean, low=low, high=high, n=int(n), changed=int(changed))


def _check_finite(values: Floats) -> None:
    if not values.size:
        raise ValueError("a paired difference needs at least one item, got 0")
    if not np.isfinite(values).all():
        raise ValueError("every item must have a finite value")
