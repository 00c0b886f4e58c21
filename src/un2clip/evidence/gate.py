"""The gate: may a challenger replace the champion? A pure function of scores and rules.

It reads nothing and writes nothing, and no orchestrator's condition decides in its place.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from un2clip.evidence.power import smallest_shown
from un2clip.evidence.scores import Scores, mismatch
from un2clip.evidence.statistics import Difference, corrected, of_right_or_wrong, paired_difference
from un2clip.evidence.units import get_unit


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One demand on one benchmark.

    Attributes:
        benchmark: name of the benchmark, or diffusion_loss; never one of a number of the whole set.
        gain_above: the worse bound of the gain's interval must lie above this, in the benchmark's unit. 0 and more is
            superiority, a gain that is certain; -2 is non-inferiority with a margin of 2, a loss that is certainly
            less. A loss that falls is a gain.
        data_sha256: the challenger must be measured on data of this hash, as its scores file has it; "" for any.
            Without it the first champion may have come from any data.
    """

    benchmark: str
    gain_above: float
    data_sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([0-9a-f]{64})?", self.data_sha256):
            raise ValueError(f"data_sha256 must be 64 hexadecimal digits or empty, got {self.data_sha256!r}")
        if not math.isfinite(self.gain_above):
            raise ValueError(f"gain_above must be a finite number, got {self.gain_above}")

    @property
    def kind(self) -> str:
        """What kind of claim it is, in the words of clinical trials."""
        if self.gain_above < 0.0:
            return f"non-inferiority with a margin of {-self.gain_above:g}"
        return f"superiority by {self.gain_above:g}" if self.gain_above else "superiority"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule's outcome: `gain` is None when the scores could not be compared, and then the rule fails.

    `smallest_gain` is the smallest true gain that passes in a share `power` of cases, given how many samples changed
    here; None where no gain does.
    """

    rule: Rule
    passed: bool
    sentence: str
    unit: str | None = None
    champion: float | None = None
    challenger: float | None = None
    gain: Difference | None = None
    smallest_gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """All findings, in the order of the rules; and objections, sentences on what no rule asks about.

    `looks` is how many encoders were judged on these data since the last champion, this one among them.
    """

    findings: tuple[Finding, ...]
    objections: tuple[str, ...] = ()
    looks: int = 1

    @property
    def passed(self) -> bool:
        """Whether every rule passed and nothing is objected; without a rule nothing is allowed through."""
        return bool(self.findings) and all(finding.passed for finding in self.findings) and not self.objections

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a person reads of it, a sentence each."""
        said = f"Encoders judged on these data since the last champion: {self.looks}; so the bounds are further out."
        return *([said] if self.looks > 1 else []), *(each.sentence for each in self.findings), *self.objections


def decide(
    champion: Mapping[str, Scores],
    challenger: Mapping[str, Scores],
    rules: Sequence[Rule],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    power: float,
    looks: int,
) -> Decision:
    """Judge the challenger by every rule. Every rule must hold, so nothing is corrected for there being several.

    Args:
        champion, challenger: benchmark -> scores of that encoder.
        rules: demands; one that cannot be judged counts as failed.
        confidence, resamples, seed: of the paired interval.
        power: share of cases, of which `Finding.smallest_gain` speaks.
        looks: how many encoders were judged on these data since the last champion, this one among them; the interval
            is of the level that `statistics.corrected` makes of it.
    """
    level = corrected(confidence, looks)

    def gain(before: Scores, after: Scores) -> Difference:
        how: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed, "looks": looks}
        difference = paired_difference(before.items, after.items, unit=after.unit, **how)
        return difference.negated() if after.lower_is_better else difference

    findings = []
    for rule in rules:
        before, after = champion.get(rule.benchmark), challenger.get(rule.benchmark)
        known = after or before
        if known is not None and (never := never_a_rule(known)):
            findings.append(_refusal(rule, never))
        elif before is None or after is None:
            missing = " and ".join(name for name, each in (("champion", before), ("challenger", after)) if each is None)
            findings.append(_refusal(rule, f"no scores of the {missing}"))
        elif rule.data_sha256 not in ("", after.data_sha256):
            findings.append(
                _refusal(rule, f"its data are {after.data_sha256[:12]}, but the rule asks for {rule.data_sha256[:12]}")
            )
        elif reason := mismatch(before, after):
            findings.append(_refusal(rule, reason))
        else:
            findings.append(_judge(rule, before, after, gain(before, after), level, power))
    return Decision(findings=tuple(findings), looks=looks)


def never_a_rule(scores: Scores) -> str:
    """Why scores like these may not be a rule, as half a sentence; "" where they may."""
    if not get_unit(scores.unit).set_level:
        return ""
    return f"{scores.unit} is one number of the whole set: it has no interval, and may never be a rule"


def _refusal(rule: Rule, reason: str) -> Finding:
    return Finding(rule=rule, passed=False, sentence=f"{rule.benchmark} cannot be judged: {reason}.")


def _judge(rule: Rule, before: Scores, after: Scores, gain: Difference, confidence: float, power: float) -> Finding:
    passed = gain.low is not None and gain.low > rule.gain_above
    unit = get_unit(after.unit)
    change = "did not change"
    if gain.mean:
        change = f"{'gained' if gain.mean > 0 else 'lost'} {abs(gain.mean):.4g} {unit.change}"
    smallest = smallest_shown(
        gain,
        after.unit,
        right_or_wrong=of_right_or_wrong(before.items, after.items, after.unit) is not None,
        bound=rule.gain_above,
        confidence=confidence,
        power=power,
    )
    true = f"a true {'loss' if smallest < 0.0 else 'gain'} of {abs(smallest):.3g} {unit.change}"
    shows = f"{true} passes in about {100 * power:g} of 100 cases"
    if math.isnan(smallest):
        shows = "no sample changed, so what it could show is not known"
    elif math.isinf(smallest):
        shows = f"no outcome of its {gain.n} {unit.counts} could pass; take a benchmark of more"
    sentence = (
        f"{rule.benchmark} {change} over {gain.n} {unit.counts} "
        f"({100 * confidence:.4g} % interval of the gain {gain.low:.4g} to {gain.high:.4g}); "
        f"{rule.kind} asks for a lower bound above {rule.gain_above:g}: {'passed' if passed else 'failed'} ({shows})."
    )
    return Finding(
        rule=rule,
        passed=passed,
        sentence=sentence,
        unit=after.unit,
        champion=before.score,
        challenger=after.score,
        gain=gain,
        smallest_gain=smallest if math.isfinite(smallest) else None,
    )
