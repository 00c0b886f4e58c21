"""Scores whose towers computed in bf16: told from those in fp32, and held against them item by item.

fp32 is what published numbers are in. Protocols differ, so scores of different precision are never compared as if they
were alike; here they are compared on purpose, for one encoder.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from un2clip.errors import UserError
from un2clip.evidence.scores import BF16, Scores, load_all, mismatch


def in_bf16(protocol: str) -> str:
    """What the protocol of a measurement in fp32 is where the towers compute in bf16."""
    return f"{protocol.replace('fp32; ', '', 1)}; {BF16}"


@dataclass(frozen=True, kw_only=True)
class InBoth:
    """One encoder measured on one benchmark in both precisions: `differ` of `n` items have another outcome."""

    benchmark: str
    role: str
    differ: int
    n: int

    def __str__(self) -> str:
        return f"{self.benchmark} ({self.role}): in bf16 {self.differ} of {self.n} items differ from fp32."


def held_in_both(folders: list[Path]) -> Iterator[InBoth]:
    """What differs, for each scores file in bf16 beside which there is one in fp32.

    Raises:
        UserError: the two are not of one encoder on the same data, measured alike.
    """
    found = load_all(folders)
    for (benchmark, bf16), roles in sorted(found.items()):
        for role, scores in sorted(roles.items()) if bf16 else ():
            if (other := found.get((benchmark, False), {}).get(role)) is not None:
                yield _held(other, scores)


def _held(fp32: Scores, bf16: Scores) -> InBoth:
    alike = dataclasses.replace(fp32, protocol=in_bf16(fp32.protocol))
    reason = mismatch(alike, bf16)
    if fp32.encoder_sha256 != bf16.encoder_sha256:
        reason = f"encoder_sha256 differs ({fp32.encoder_sha256[:12]} and {bf16.encoder_sha256[:12]})"
    if reason:
        raise UserError(f"{bf16.benchmark} ({bf16.role}): fp32 and bf16 cannot be compared: {reason}")
    before, after = ({item.id: (item.value, item.of) for item in each.items} for each in (fp32, bf16))
    differ = sum(before.get(id) != after.get(id) for id in before | after)
    return InBoth(benchmark=bf16.benchmark, role=bf16.role, differ=differ, n=len(before | after))


def refused(scores: Scores, seen: tuple[InBoth, ...]) -> str:
    """Why the gate may not judge by these scores, as half a sentence; "" where it may."""
    if not scores.bf16 or any(each.benchmark == scores.benchmark for each in seen):
        return ""
    return (
        "its scores are in bf16, and `compare` has seen none in fp32: evaluate one of the encoders with "
        "evaluate.precision fp32 into another folder, and name that folder too among --scores of compare and promote"
    )
