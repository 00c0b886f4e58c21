"""Aggregates of questions that belong together: pairs, groups, questions times figures, and sources of a set.

An item is one question, and its id is `sample@row-column`: what must be answered right together is a row, a column or
the whole sample. NaturalBench has two questions (rows) times two images (columns), HallusionBench figures times
questions, MMVP two questions of one pair, MME two questions of one image, circular MMBench a question's rotations.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from un2clip.evidence.aggregates import Floats, OfSums
from un2clip.evidence.items import Item


class Crossed(OfSums):
    """A weighted sum of four shares: items right, and rows, columns and samples with all their items right.

    Args:
        items, rows, columns, samples: weights of the four.
        sum_types: whether the whole is the sum of the types' scores, as in MME; else that of all types together.
    """

    def __init__(
        self,
        *,
        items: float = 0.0,
        rows: float = 0.0,
        columns: float = 0.0,
        samples: float = 0.0,
        sum_types: bool = False,
    ) -> None:
        self.weights = np.array([items, rows, columns, samples])
        self.sum_types = sum_types

    def sums(self, items: Sequence[Item]) -> tuple[float, ...]:
        right = [item.value == 1.0 for item in items]
        parts = [item.id.rpartition("@")[2].partition("-") for item in items]
        rows, columns = (_all_right([part[i] for part in parts], right) for i in (0, 2))
        sample = [all(right)] if items else []
        return tuple(float(n) for each in (right, rows, columns, sample) for n in (sum(each), len(each)))

    def scores(self, sums: Floats, scale: float) -> Floats:
        types = self._weighed(sums, scale)
        whole = types.sum(axis=-1) if self.sum_types else self._weighed(sums.sum(axis=-1), scale)
        return np.concatenate([whole[..., None], types], axis=-1)

    def _weighed(self, sums: Floats, scale: float) -> Floats:
        found: Floats = scale * np.tensordot(self.weights, sums[0::2] / sums[1::2], axes=1)
        return found


def shares(items: Sequence[Item]) -> dict[str, float]:
    """The four shares by their names as of `Crossed`, between 0 and 1, of items of any types."""
    one = {
        "items": Crossed(items=1.0),
        "rows": Crossed(rows=1.0),
        "columns": Crossed(columns=1.0),
        "samples": Crossed(samples=1.0),
    }
    return {name: aggregate.score(items) for name, aggregate in one.items()}


class MeanOfGroups(OfSums):
    """The share right of each type; types weigh alike within their group, and groups within the whole.

    A type's group is the first word of its name: "2D COCO" is of the group 2D.
    """

    def __init__(self, *groups: str) -> None:
        self.groups = groups

    def sums(self, items: Sequence[Item]) -> tuple[float, ...]:
        group = items[0].type.split()[0] if items else ""
        cells = (math.fsum(item.value for item in items), float(len(items)))
        return tuple(cell if each == group else 0.0 for each in self.groups for cell in cells)

    def scores(self, sums: Floats, scale: float) -> Floats:
        shares = scale * sums[0::2] / sums[1::2]  # group, ..., type: NaN where the type is of another group
        whole = _mean(_mean(shares, -1), 0)
        return np.concatenate([whole[..., None], _mean(shares, 0)], axis=-1)


def _all_right(names: Sequence[str], right: Sequence[bool]) -> list[bool]:
    """Of each name, whether all its items are right."""
    found: dict[str, bool] = defaultdict(lambda: True)
    for name, each in zip(names, right, strict=True):
        found[name] &= each
    return list(found.values())


def _mean(values: Floats, axis: int) -> Floats:
    """The mean of what is there; NaN where nothing is."""
    found: Floats = np.nansum(values, axis=axis) / np.isfinite(values).sum(axis=axis)
    return found
