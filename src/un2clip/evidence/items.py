"""An item: one outcome of one encoder."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """One outcome: `value` out of `of`. What both may be is the unit's to say (evidence/units.py).

    An id `sample@part` is one of several outcomes of the same sample, such as an image at several noise levels.
    """

    id: str
    type: str
    value: float
    of: float = 1.0

    @property
    def sample(self) -> str:
        """What is drawn as a whole when intervals are made: the id without its part."""
        return self.id.rpartition("@")[0] or self.id


def by_type(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The items of each type, types in order of first appearance."""
    types: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        types[item.type].append(item)
    return dict(types)
