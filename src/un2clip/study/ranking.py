"""Does the diffusion loss rank checkpoints as a benchmark of detail does? Then it is a metric that needs no labels.

arXiv 2505.24517 says so of its default design: the encoder alone trains, through the frozen generator.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, spearmanr

from un2clip.evidence.statistics import t_interval
from un2clip.methods.table import METHODS
from un2clip.study.seeds import Result
from un2clip.study.variants import RANDOM

#: (checkpoints, 2): what the loss gained and what the benchmark gained, both of one seed's reference.
Gains = np.ndarray
CORRELATIONS: dict[str, Callable[..., tuple[float, float]]] = {"Spearman": spearmanr, "Kendall": kendalltau}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One rank correlation of the loss's fall with the benchmark's rise; +1: they rank alike.

    Attributes:
        checkpoints: which, beside each seed's reference.
        correlation: Spearman's rho or Kendall's tau-b.
        of_seed: seed -> within its own checkpoints; None where one of the two does not vary.
        mean, low, high: of the seeds' correlations, with Student's t interval over the seeds, cut at -+ 1.
        pooled, pooled_low, pooled_high: over all seeds' checkpoints together, with a percentile bootstrap interval for
            which whole seeds are drawn, each with all its checkpoints. For a handful of seeds it is too narrow.
    """

    checkpoints: tuple[str, ...]
    correlation: str
    of_seed: dict[int, float | None]
    mean: float | None
    low: float | None
    high: float | None
    pooled: float | None
    pooled_low: float | None
    pooled_high: float | None


def default_design(method: str) -> bool:
    """Whether a row (or a variant of it) trains the encoder alone, through the frozen generator, held by nothing."""
    row, word = METHODS[method.partition("@")[0]], method.partition("@")[2]
    alone = all(phase.trains == ("encoder",) for phase in row.phases)
    return alone and not row.anchors and (row.decoder, row.condition) == ("unclip", "identity") and word != RANDOM


def rankings(
    results: Sequence[Result], benchmark: str, *, confidence: float, resamples: int, seed: int
) -> list[Ranking]:
    """Both correlations, over the checkpoints of the default design and over all of them."""
    names = list(dict.fromkeys(method for _, method, _ in results))
    found = []
    for listed in (list(filter(default_design, names)), names):
        gains = _gains([result for result in results if result[1] in listed], benchmark)
        for name in CORRELATIONS:
            of_seed = {number: correlate(name, each) for number, each in gains.items()}
            known = [value for value in of_seed.values() if value is not None]
            low, high = t_interval(known, confidence)
            pooled_low, pooled_high = _bootstrap(name, list(gains.values()), confidence, resamples, seed)
            found.append(
                Ranking(
                    checkpoints=tuple(listed),
                    correlation=name,
                    of_seed=of_seed,
                    mean=statistics.mean(known) if known else None,
                    low=None if low is None else max(low, -1.0),
                    high=None if high is None else min(high, 1.0),
                    pooled=correlate(name, np.concatenate(list(gains.values()))) if gains else None,
                    pooled_low=pooled_low,
                    pooled_high=pooled_high,
                )
            )
    return found


def correlate(name: str, gains: Gains) -> float | None:
    """The correlation of the two columns; None where one of them does not vary."""
    if len(gains) < 2 or np.ptp(gains, axis=0).min() == 0:
        return None
    return float(CORRELATIONS[name](gains[:, 0], gains[:, 1])[0])


def _gains(results: Sequence[Result], benchmark: str) -> dict[int, Gains]:
    """Of each seed: its reference, which gained nothing, and its checkpoints."""
    points: dict[int, list[tuple[float, float]]] = {}
    for seed, _, compared in results:
        if benchmark not in compared:
            continue
        loss, score = (compared[name].whole.difference.mean for name in ("diffusion_loss", benchmark))
        points.setdefault(seed, [(0.0, 0.0)]).append((-loss, score))
    return {seed: np.array(each) for seed, each in points.items()}


def _bootstrap(
    name: str, gains: Sequence[Gains], confidence: float, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Percentiles over draws of as many seeds; equal draws are computed once."""
    if len(gains) < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(len(gains), size=(resamples, len(gains)))
    distinct, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    values = [correlate(name, np.concatenate([gains[i] for i in draw])) for draw in distinct]
    repeated = np.repeat([np.nan if value is None else value for value in values], counts)
    tail = (1.0 - confidence) / 2.0
    if np.isnan(repeated).all():
        return None, None
    low, high = np.nanquantile(repeated, [tail, 1.0 - tail])
    return float(low), float(high)


def ranking_table(found: Sequence[Ranking], benchmark: str, confidence: float) -> str:
    """Markdown: a row a correlation."""
    if not found:
        return ""
    seeds, percent = list(found[0].of_seed), f"{100 * confidence:g} %"
    lines = [
        f"### Does the diffusion loss rank checkpoints as {benchmark} does?\n",
        "Rank correlation of the loss's fall with the benchmark's rise, over the reference and its checkpoints, each",
        "less the reference of its own seed; +1: the same order.",
        f"Mean: of the seeds' correlations, with a {percent} t interval over seeds.",
        f"Pooled: all seeds' checkpoints together, with a {percent} bootstrap interval; whole seeds are drawn.",
        "Both measures are noisy, and noise brings a correlation nearer to 0.\n",
    ]
    head = ["checkpoints", "correlation", *(f"seed {seed}" for seed in seeds), "mean", "interval", "pooled", "interval"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in found:
        cells = [", ".join(each.checkpoints), each.correlation, *(_number(each.of_seed.get(seed)) for seed in seeds)]
        cells += [_number(each.mean), _interval(each.low, each.high)]
        cells += [_number(each.pooled), _interval(each.pooled_low, each.pooled_high)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
