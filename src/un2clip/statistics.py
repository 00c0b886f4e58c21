"""The paired bootstrap: how sure is the difference of two encoders that saw the same items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from un2clip.scores import Item

_CELLS = 4_000_000  # resamples x distinct differences drawn at once: 32 MB


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean paired difference and its interval, all in the benchmark's unit.

    Attributes:
        mean: mean over items of `after - before`.
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


def paired_difference(
    before: Sequence[Item], after: Sequence[Item], *, scale: float, confidence: float, resamples: int, seed: int
) -> Difference:
    """Mean difference over the same items, with a percentile bootstrap interval over samples.

    The parts of one sample are not independent, so a sample is drawn with all its items. Drawing n samples
    with replacement means drawing how often each distinct difference occurs, so one multinomial draw over the
    distinct differences is one resample: exact, and quick for outcomes of 0 and 1. Where all differences are
    equal the interval is that one number (bias-corrected variants give NaN there).

    A percentile interval is too narrow for a handful of samples: with k samples changed, all in one direction,
    a fair coin does the same with probability 2 * 0.5^k. As long as that is above `1 - confidence` (k < 6 for
    95 %) no sign is established, and the interval is widened to take in 0.

    Args:
        before, after: the same items in the same order.
        scale: what a difference of 1 is in the unit (100 for percent).
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the draw; the same seed gives the same interval.

    Raises:
        ValueError: no items, different items, or a value that is not finite.
    """
    if [item.id for item in before] != [item.id for item in after]:
        raise ValueError(f"paired items must be the same in the same order, got {len(before)} and {len(after)}")
    if not before:
        raise ValueError("a paired difference needs at least one item, got 0")
    differences = scale * np.array([b.value - a.value for a, b in zip(before, after, strict=True)], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("every item must have a finite value")
    index = {name: i for i, name in enumerate(dict.fromkeys(item.sample for item in before))}
    of_sample = np.array([index[item.sample] for item in before])
    n = len(index)
    per_sample = np.stack([np.bincount(of_sample, differences), np.bincount(of_sample)], axis=1)  # (n, 2): sum, items
    distinct, counts = np.unique(per_sample, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(distinct))
    drawn = [
        rng.multinomial(n, counts / n, size=min(step, resamples - first)) @ distinct
        for first in range(0, resamples, step)
    ]
    sums, items = np.concatenate(drawn).T
    tail = (1.0 - confidence) / 2.0
    low, high = map(float, np.quantile(sums / items, [tail, 1.0 - tail]))
    changed = int(np.count_nonzero(np.bincount(of_sample, np.abs(differences))))
    if 2.0 * 0.5**changed > 1.0 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(mean=math.fsum(differences) / len(differences), low=low, high=high, n=n, changed=changed)
