"""How sure is the difference of two encoders that saw the same samples: paired bootstrap, exact binomial bounds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from scipy.special import stdtrit

from un2clip.evidence.aggregates import Aggregate, Draw, Floats, mean_of
from un2clip.evidence.exact import FEW, gain_bounds, normal_tail, sign_test
from un2clip.evidence.items import Item
from un2clip.evidence.units import get_unit

_CELLS = 4_000_000  # numbers drawn at once: 32 MB


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of two scores and its interval, all in the benchmark's unit.

    Attributes:
        mean: score of `after` less score of `before`.
        low, high: bounds of the interval; None for a number of the whole set, which has no items to draw.
        n: samples: items, where the parts of one sample (`Item.sample`) count once.
        changed: samples on which the two differ.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    changed: int

    @property
    def is_noise(self) -> bool:
        """Whether no difference was shown: the interval holds 0, or there is none."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high

    def negated(self) -> "Difference":
        """The difference read the other way round, `before - after`."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Difference(mean=-self.mean, low=low, high=high, n=self.n, changed=self.changed)


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


def corrected(confidence: float, looks: int) -> float:
    """The level of the interval by which the encoder number `looks` is judged on the same data.

    It may err 1 / looks^2 as often as that of a first one: over any number of encoders these add up to pi^2 / 6 = 1.64
    times the first one's. That is a level spent over looks whose number is not fixed (Lan and DeMets, Biometrika 70,
    1983), by Bonferroni's inequality with unequal weights, so it asks nothing of how the encoders depend on each other.
    """
    return 1.0 - (1.0 - confidence) / looks**2


def paired_difference(
    before: Sequence[Item],
    after: Sequence[Item],
    *,
    unit: str,
    confidence: float,
    resamples: int,
    seed: int,
    looks: int = 1,
) -> Difference:
    """Difference of two scores on the same samples, with a percentile bootstrap interval over samples.

    The parts of one sample are not independent, so a sample is drawn with all its items. Where a unit does not pair
    the items, as in mIoU, one that only one encoder has stands against sums of 0.

    A percentile interval is too narrow for a handful of samples. Where fewer than FEW samples rose or fell, the bounds
    of right and wrong outcomes are `exact.gain_bounds`, and so they are of shares of right outcomes where none rose or
    fell; of other outcomes the interval is widened to take in 0, unless the sign test over the samples excludes it.

    Args:
        before, after: the same items in the same order; of a unit that does not pair them, those of the same samples.
        unit: of the items; its aggregate says how sums over samples become a score.
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the draw; the same seed gives the same interval.
        looks: how many encoders were judged on these data, this one among them; the interval is of the confidence
            that `corrected` gives. So far out there are few resamples, so a bootstrap's bounds are moved by the ratio
            of the normal law's.

    Raises:
        ValueError: no items, different items, a value that is not finite, a unit that has no items, or a score that is
            undefined in every resample.
    """
    return _differences(next(_draws(before, after, unit)), unit, confidence, resamples, seed, looks)[None]


def paired_differences(
    before: Sequence[Item], after: Sequence[Item], *, unit: str, confidence: float, resamples: int, seed: int
) -> tuple[Difference, dict[str, Difference]]:
    """`paired_difference` over all items, and for each type, in the order of `after`.

    A type that only one encoder has, such as a class that only one ever predicted and no label has, is left out; so is
    one whose score is undefined in every resample, such as an F1 of nothing to find and nothing found.
    """
    found: dict[str | None, Difference] = {}
    for draw in _draws(before, after, unit):
        found |= _differences(draw, unit, confidence, resamples, seed)
    return found[None], {name: difference for name, difference in found.items() if name is not None}


def mean_difference(
    pairs: Sequence[tuple[Sequence[Item], Sequence[Item]]], *, unit: str, confidence: float, resamples: int, seed: int
) -> Difference:
    """The mean of several paired differences on the same samples; its interval over samples, each drawn in all pairs.

    It says what other samples might give, and nothing of what another pair would. As many samples changed as in the
    pair where most did.

    Args:
        pairs: (before, after), of a unit that pairs the items; the same items in the same order in all.

    Raises:
        ValueError: as `paired_difference`, or the items of two pairs differ.
    """
    if not pairs or any([item.id for item in pair[0]] != [item.id for item in pairs[0][0]] for pair in pairs):
        raise ValueError(f"the mean of differences needs the same items in each pair, got {len(pairs)} pairs")
    scale = get_unit(unit).scale
    laid = [_check(*pair, unit).by_sample(*pair, scale) for pair in pairs]
    return _differences(mean_of(laid), unit, confidence, resamples, seed)[None]


def t_interval(values: Sequence[float], confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Student's t interval of the mean; none of fewer than two values."""
    k = len(values)
    if k < 2:
        return None, None
    half = float(stdtrit(k - 1, (1.0 + confidence) / 2.0)) * stdev(values) / k**0.5
    return mean(values) - half, mean(values) + half


def discordant(before: Sequence[Item], after: Sequence[Item]) -> Discordant | None:
    """Exact McNemar test; None unless every item is a sample of its own with an outcome of 0 or 1.

    Args:
        before, after: the same items in the same order, each right or wrong.
    """
    if len({item.sample for item in after}) != len(after) or any(i.value not in (0.0, 1.0) for i in (*before, *after)):
        return None
    pairs = list(zip(before, after, strict=True))
    gained, lost = (sum(b.value - a.value == sign for a, b in pairs) for sign in (1.0, -1.0))
    return Discordant(gained=gained, lost=lost, p_value=sign_test(gained, lost))


def of_right_or_wrong(before: Sequence[Item], after: Sequence[Item], unit: str) -> Discordant | None:
    """`discordant`, where the unit counts what is right and what is wrong; None for any other."""
    return discordant(before, after) if get_unit(unit).right_or_wrong else None


def _draws(before: Sequence[Item], after: Sequence[Item], unit: str) -> Iterator[Draw]:
    return _check(before, after, unit).draws(before, after, get_unit(unit).scale)


def _check(before: Sequence[Item], after: Sequence[Item], unit: str) -> Aggregate:
    """The unit's aggregate; a ValueError where the items cannot be compared by it."""
    row = get_unit(unit)
    if row.aggregate is None:
        raise ValueError(f"{row.name} is a number of the whole set, which has no paired difference of items")
    if not before or not after:
        raise ValueError("a paired difference needs at least one item, got 0")
    if row.paired and [(item.id, item.type) for item in before] != [(item.id, item.type) for item in after]:
        raise ValueError(f"paired items must be the same in the same order, got {len(before)} and {len(after)}")
    if not all(math.isfinite(item.value) and math.isfinite(item.of) for item in (*before, *after)):
        raise ValueError("every item must have a finite value")
    return row.aggregate


def _differences(
    draw: Draw, unit: str, confidence: float, resamples: int, seed: int, looks: int = 1
) -> dict[str | None, Difference]:
    drawn = _resample(draw, resamples, seed)
    found: dict[str | None, Difference] = {}
    for i, name in enumerate(draw.names):
        defined = drawn[:, i][np.isfinite(drawn[:, i])]
        if defined.size:
            low, high = _bounds(draw, i, unit, defined, confidence, looks)
            found[name] = Difference(mean=draw.measured[i], low=low, high=high, n=draw.n[i], changed=draw.changed[i])
        elif name is None:
            raise ValueError(
                f"the score is 0 / 0 in each of {resamples} draws: nothing counts in its {draw.n[i]} samples"
            )
    return found


def _resample(draw: Draw, resamples: int, seed: int) -> Floats:
    """The differences of `resamples` draws of all samples with replacement, (resamples, k).

    Drawing says how often each row occurs, so no row is copied.
    """
    rng = np.random.default_rng(seed)
    n = int(draw.counts.sum())
    step = max(1, _CELLS // max(draw.rows.shape))
    return np.concatenate([
        draw.differences(rng.multinomial(n, draw.counts / n, size=min(step, resamples - first)) @ draw.rows)
        for first in range(0, resamples, step)
    ])  # fmt: skip


def _bounds(draw: Draw, i: int, unit: str, resampled: Floats, confidence: float, looks: int) -> tuple[float, float]:
    """The interval of the i-th difference of a draw, in the unit."""
    measured, rose, fell, row = draw.measured[i], draw.rose[i], draw.fell[i], get_unit(unit)
    level, tail = corrected(confidence, looks), (1.0 - confidence) / 2.0
    if row.right_or_wrong and (draw.single[i] and rose + fell < FEW or not rose + fell):
        exact = gain_bounds(rose, fell, draw.n[i], level)
        return row.scale * exact[0], row.scale * exact[1]
    low, high = map(float, np.quantile(resampled, [tail, 1.0 - tail]))
    if looks > 1:
        wider = normal_tail((1.0 - level) / 2.0) / normal_tail(tail)
        low, high = measured - wider * (measured - low), measured + wider * (high - measured)
    if rose + fell < FEW and sign_test(rose, fell) > 1.0 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high
