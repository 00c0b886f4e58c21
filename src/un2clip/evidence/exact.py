"""Bounds that hold for a handful of changed samples, where a bootstrap is too narrow: exact binomial tests."""

from scipy.stats import beta, binomtest

#: Below so many samples that rose or fell, bounds are exact; above it a bootstrap's are as good (docs/statistics.md).
FEW = 20


def sign_test(rose: int, fell: int) -> float:
    """Two-sided p of a fair coin falling so unevenly or more; 1 where nothing fell either way."""
    return float(binomtest(rose, rose + fell).pvalue) if rose + fell else 1.0


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
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.isf(tail, k + 1, n - k)) if k < n else 1.0
    return low, high
