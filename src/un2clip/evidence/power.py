"""What a benchmark can show at all: the smallest gain that its samples show in most cases, and what they never show.

For outcomes that are right or wrong the closed form is that of McNemar's test (Miettinen, Biometrics 24, 1968; Connor,
Biometrics 43, 1987): a gain of g with a share d of samples that change has the variance d - g^2 a sample. For other
outcomes the standard error is read off an interval that was measured.
"""

import math

from scipy.special import betaincinv

from un2clip.evidence.exact import FEW, gain_bounds, normal_tail
from un2clip.evidence.statistics import Difference
from un2clip.evidence.units import get_unit


def smallest_gain(n: int, discordance: float, *, bound: float, confidence: float, power: float) -> float:
    """The smallest gain of n right or wrong samples whose lower bound lies above `bound` in a share `power` of cases.

    Args:
        n: samples, at least 1.
        discordance: share of them that change, between 0 and 1; it is taken to be at least as large as the gain.
        bound: between -1 and 1; 0 for superiority, less for non-inferiority.
        confidence: of the two-sided interval.
        power: between 0.5 and 1.

    Returns:
        The gain as a share of the samples; inf where not even a gain of all of them is enough.
    """
    if never(n, bound, confidence=confidence):
        return math.inf
    k = (normal_tail((1.0 - confidence) / 2.0) + normal_tail(1.0 - power)) ** 2 / n
    # (g - bound)^2 = k (d - g^2), the larger root; then the same with d = g
    gain = (bound + math.sqrt(max(bound**2 - (1.0 + k) * (bound**2 - k * discordance), 0.0))) / (1.0 + k)
    if abs(gain) > discordance:
        half = (2.0 * bound + math.copysign(k, gain)) / (2.0 * (1.0 + k))
        gain = half + math.sqrt(max(half**2 - bound**2 / (1.0 + k), 0.0))
    if bound >= 0.0:  # a handful of changes must be enough of them to have a sign
        gain = max(gain, float(betaincinv(fewest(confidence), n - fewest(confidence) + 1, power)))
    return min(gain, 1.0)


def smallest_shown(
    seen: Difference, unit: str, *, right_or_wrong: bool, bound: float, confidence: float, power: float
) -> float:
    """The same in a unit, as large as the samples of a difference that was seen show it.

    Args:
        seen: the difference, whose interval is of that confidence.
        unit: its row of UNITS, one that has items.
        right_or_wrong: whether every sample is one outcome, which is right or wrong.
        bound: in the unit, as of a gain.

    Returns:
        The gain in the unit; inf where no outcome of its samples is enough, nan where it is not known: no sample
        changed, so nothing says how much outcomes that are not right or wrong vary.
    """
    row, n = get_unit(unit), seen.n
    if right_or_wrong:
        share = smallest_gain(n, seen.changed / n, bound=bound / row.scale, confidence=confidence, power=power)
        return row.scale * share
    if seen.low is None or seen.high is None or (bound >= 0.0 and n < fewest(confidence)):
        return math.inf
    if not seen.changed:
        return math.nan
    z = normal_tail((1.0 - confidence) / 2.0)
    return bound + (z + normal_tail(1.0 - power)) * (seen.high - seen.low) / 2.0 / z


def never(n: int, bound: float, *, confidence: float) -> bool:
    """Whether no outcome of n right or wrong samples has its lower bound above `bound`, between -1 and 1."""
    return (gain_bounds(n, 0, n, confidence)[0] if n < FEW else 1.0) <= bound


def fewest(confidence: float) -> int:
    """How many samples must change, all to the better, until the sign test says so: 6 for 95 %."""
    return math.ceil(1.0 - math.log2(1.0 - confidence))
