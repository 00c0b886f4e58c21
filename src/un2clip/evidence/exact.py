"""Bounds that hold for a handful of changed samples, where a bootstrap is too narrow: exact binomial tests.

By scipy.special's functions: scipy.stats has the same under other names, and every stage's start would wait for it.
"""

from scipy.special import bdtr, betainccinv, betaincinv, ndtri

#: Below so many samples that rose or fell, bounds are exact; above it a bootstrap's are as good (docs/statistics.md).
FEW = 20


def sign_test(rose: int, fell: int) -> float:
    """Two-sided p of a fair coin falling so unevenly or more; 1 where nothing fell either way."""
    return min(1.0, 2.0 * float(bdtr(min(rose, fell), rose + fell, 0.5)))


def gain_bounds(rose: int, fell: int, n: int, confidence: float) -> tuple[float, float]:
    """Bounds of the gain of n samples that are right or wrong, as a share of them, between -1 and 1.

    The gain is (share of samples that change) * (2 * share of these that rise - 1); each share has its exact binomial
    bounds (Clopper and Pearson, Biometrika 26, 1934), and the worse of them count. So the interval excludes 0
    just where McNemar's exact test does, and where nothing changed it is as wide as n leaves room for a change.

    Args:
        rose, fell: samples that only the later or only the earlier encoder has right.
        n: all samples, at least 1.
        confidence: between 0 and 1; each bound fails at most half of the rest.
    """
    fewest, most = share_bounds(rose + fell, n, confidence)
    rises = share_bounds(rose, rose + fell, confidence)
    low, high = (2.0 * share - 1.0 for share in rises)
    return low * (fewest if low > 0.0 else most), high * (fewest if high < 0.0 else most)


def share_bounds(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds of a share of which k of n are known; 0 and 1 where nothing is."""
    tail = (1.0 - confidence) / 2.0
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betainccinv(k + 1, n - k, tail)) if k < n else 1.0
    return low, high


def normal_tail(p: float) -> float:
    """The point above which a standard normal law has the share p."""
    return -float(ndtri(p))
