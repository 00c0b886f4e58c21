"""How items become a score, and how samples are drawn for its interval: the part of a unit that computes.

`Mean` is the mean over the items. Any other score is an `OfSums`: what each sample adds to some sums, and the score
that follows from sums. The bootstrap (evidence/statistics.py) draws what an aggregate lays out and knows none by name.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from un2clip.evidence.items import Item, by_type

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Two encoders' items, laid out for one draw of samples, from which k differences (`after` less `before`) follow.

    Attributes:
        names: of the k differences: a type, or None for that of all items, which is the first where it is there.
        rows: (d, m) what a sample adds to the sums; several samples may share a row.
        counts: (d,) how many do.
        differences: sums (R, m) of R resamples -> (R, k), in the unit; NaN where a resample has no such type.
        measured: the k differences without resampling.
        n, changed: k counts: samples, and those on which the two encoders differ.
        rose, fell: k counts: samples whose own difference is above 0, and below. Where a sample has none of its own, as
            in a ratio of sums, all that changed count as risen: the case in which a sign is easiest to establish.
        single: k: whether every sample is one item whose outcome is 0 or 1.
    """

    names: tuple[str | None, ...]
    rows: Floats
    counts: NDArray[Any]
    differences: Callable[[Floats], Floats]
    measured: tuple[float, ...]
    n: tuple[int, ...]
    changed: tuple[int, ...]
    rose: tuple[int, ...]
    fell: tuple[int, ...]
    single: tuple[bool, ...]


class Aggregate(Protocol):
    """From items to a score, and to draws of samples."""

    def score(self, items: Sequence[Item]) -> float:
        """The score of at least one item, in parts of the unit's scale."""

    def draws(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Iterator[Draw]:
        """One draw or several: the first has the difference of all items, all together have those of the types.

        The types come in the order of `after`; one that only one encoder has, has no difference and is left out.

        Args:
            before, after: two encoders' items of the same samples, at least one each.
            scale: of the unit; the differences are in it.
        """

    def by_sample(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Draw:
        """A draw whose first difference is that of all items, and whose rows are the samples, in their order."""


class Mean:
    """The mean of the items' values. All items are a draw, and so are those of each type.

    The difference of two means is the mean of the items' differences, so samples of equal difference are drawn
    together: exact, and quick for outcomes of 0 and 1. The items must be the same in the same order.
    """

    def score(self, items: Sequence[Item]) -> float:
        return math.fsum(item.value for item in items) / len(items)

    def draws(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Iterator[Draw]:
        yield _together(self._draw(None, before, after, scale))
        types = by_type(before)
        for name, items in by_type(after).items():
            yield _together(self._draw(name, types[name], items, scale))

    def by_sample(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Draw:
        return self._draw(None, before, after, scale)

    def _draw(self, name: str | None, before: Sequence[Item], after: Sequence[Item], scale: float) -> Draw:
        differences = scale * np.array([b.value - a.value for a, b in zip(before, after, strict=True)], np.float64)
        index = _index(before)
        of_sample = np.array([index[item.sample] for item in before])
        per_sample: Floats = np.stack([np.bincount(of_sample, differences), np.bincount(of_sample)], axis=1)
        return Draw(
            names=(name,),
            rows=per_sample,
            counts=np.ones(len(index)),
            differences=lambda sums: sums[:, :1] / sums[:, 1:],
            measured=(math.fsum(differences) / len(differences),),
            n=(len(index),),
            changed=(int(np.count_nonzero(np.bincount(of_sample, np.abs(differences)))),),
            rose=(int(np.count_nonzero(per_sample[:, 0] > 0.0)),),
            fell=(int(np.count_nonzero(per_sample[:, 0] < 0.0)),),
            single=(len(index) == len(before) and all(item.value in (0.0, 1.0) for item in (*before, *after)),),
        )


class OfSums(ABC):
    """A score that follows from sums over the samples, such as a ratio: a subclass says which sums, and how.

    There is one draw: a sample comes with all its types, and with the sums of both encoders. So types need not have
    the same items in both, and the score of the whole may be any function of the types.
    """

    @abstractmethod
    def sums(self, items: Sequence[Item]) -> tuple[float, ...]:
        """What the items of one type in one sample add: m numbers, as many also where there is no item."""

    @abstractmethod
    def scores(self, sums: Floats, scale: float) -> Floats:
        """Sums (m, ..., T) of T types -> scores (..., 1 + T), that of the whole first, in the scale.

        A type without a sample has sums of 0, and a score of NaN, which 0 / 0 gives without a warning here.
        """

    def score(self, items: Sequence[Item]) -> float:
        types = [map(self.sums, _cells(of_type).values()) for of_type in by_type(items).values()]
        totals = [[math.fsum(column) for column in zip(*samples, strict=True)] for samples in types]
        return float(self._scores(np.array(totals).T, 1.0)[0])

    def draws(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Iterator[Draw]:
        samples = _index([*before, *after])
        names = list(dict.fromkeys(item.type for item in (*after, *before)))
        types = by_type(before), by_type(after)
        column = {name: i for i, name in enumerate(names)}
        sums = np.zeros((len(samples), 2, len(self.sums(())), len(names)))  # sample; before, after; sum; type
        seen = np.zeros((len(samples), len(names)), dtype=bool)
        for side, items in enumerate((before, after)):
            for (sample, name), cell in _cells(items).items():
                sums[samples[sample], side, :, column[name]] = self.sums(cell)
                seen[samples[sample], column[name]] = True
        differ = (sums[:, 0] != sums[:, 1]).any(axis=1)  # sample; type
        both = [i for i, name in enumerate(names) if name in types[0] and name in types[1]]

        def differences(resampled: Floats) -> Floats:
            sides = resampled.reshape(-1, *sums.shape[1:])
            scores = self._scores(np.moveaxis(sides, 2, 0), scale)  # (R, 2, 1 + types)
            return (scores[:, 1] - scores[:, 0])[:, [0, *(1 + i for i in both)]]

        pairs = [(before, after), *((types[0][names[i]], types[1][names[i]]) for i in both)]
        changed = (int(differ.any(axis=1).sum()), *map(int, differ.sum(axis=0)[both]))
        yield Draw(
            names=(None, *(names[i] for i in both)),
            rows=sums.reshape(len(samples), -1),
            counts=np.ones(len(samples)),
            differences=differences,
            measured=tuple(self.score(b) * scale - self.score(a) * scale for a, b in pairs),
            n=(len(samples), *map(int, seen.sum(axis=0)[both])),
            changed=changed,
            rose=changed,
            fell=(0,) * len(changed),
            single=(False,) * len(changed),
        )

    def by_sample(self, before: Sequence[Item], after: Sequence[Item], scale: float) -> Draw:
        return next(iter(self.draws(before, after, scale)))

    def _scores(self, sums: Floats, scale: float) -> Floats:
        with np.errstate(invalid="ignore"):
            return self.scores(sums, scale)


class MeanOverTypes(OfSums):
    """Sum of values over sum of `of` for each type, and the mean of these over the types.

    As mmsegmentation's IoUMetric: a class that is neither in the labels nor predicted does not count.
    """

    def sums(self, items: Sequence[Item]) -> tuple[float, ...]:
        return math.fsum(item.value for item in items), math.fsum(item.of for item in items)

    def scores(self, sums: Floats, scale: float) -> Floats:
        ratios = scale * sums[0] / sums[1]
        mean = np.nansum(ratios, axis=-1, keepdims=True) / np.isfinite(ratios).sum(axis=-1, keepdims=True)
        return np.concatenate([mean, ratios], axis=-1)

    def score(self, items: Sequence[Item]) -> float:
        ratios = [inside / union for inside, union in map(self.sums, by_type(items).values())]
        return math.fsum(ratios) / len(ratios)


def mean_of(draws: Sequence[Draw]) -> Draw:
    """The mean of the first differences of several draws by sample, of the same samples: a sample is drawn in all."""
    ends = np.cumsum([draw.rows.shape[1] for draw in draws])

    def differences(sums: Floats) -> Floats:
        parts = zip(draws, np.split(sums, ends[:-1], axis=1), strict=True)
        found: Floats = np.mean([draw.differences(part)[:, :1] for draw, part in parts], axis=0)
        return found

    changed = (max(draw.changed[0] for draw in draws),)  # at least so many
    return Draw(
        names=(None,),
        rows=np.concatenate([draw.rows for draw in draws], axis=1),
        counts=draws[0].counts,
        differences=differences,
        measured=(math.fsum(draw.measured[0] for draw in draws) / len(draws),),
        n=draws[0].n[:1],
        changed=changed,
        rose=draws[0].rose[:1] if len(draws) == 1 else changed,
        fell=draws[0].fell[:1] if len(draws) == 1 else (0,),
        single=draws[0].single[:1] if len(draws) == 1 else (False,),
    )


def _together(draw: Draw) -> Draw:
    """The same draw, its equal rows counted and not repeated."""
    rows, counts = np.unique(draw.rows, axis=0, return_counts=True)
    return replace(draw, rows=rows, counts=counts)


def _index(items: Sequence[Item]) -> dict[str, int]:
    """Sample -> its number, in order of first appearance."""
    return {name: i for i, name in enumerate(dict.fromkeys(item.sample for item in items))}


def _cells(items: Sequence[Item]) -> dict[tuple[str, str], list[Item]]:
    """(sample, type) -> its items."""
    cells: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        cells.setdefault((item.sample, item.type), []).append(item)
    return cells
