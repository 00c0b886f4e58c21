"""How often does the gate promote an encoder that is no better than it may be? A table of null pairs.

    python -m tests.null_pairs --pairs 2000 --seed 0                    # of the populations below
    python -m tests.null_pairs --pairs 2000 --seed 0 --scores scores    # of scores that were measured
    python -m tests.null_pairs --exact                                  # losses alone, without any drawing

A null pair is made by drawing samples with replacement from a population whose true gain is the rule's very bound, so
every promotion is a false one. From measured scores it is made by drawing samples, and by letting a fair coin say for
each which encoder is which: then neither is better, however the samples are made. docs/statistics.md has the tables.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import binom
from tqdm import tqdm

from un2clip.config import read_params
from un2clip.evidence.exact import FEW, gain_bounds, share_bounds
from un2clip.evidence.gate import Rule, decide
from un2clip.evidence.items import Item
from un2clip.evidence.scores import Scores, collect_scores

ROOT = Path(__file__).parents[1]
Pair = tuple[Scores, Scores]


@dataclass(frozen=True, kw_only=True)
class Population:
    """Right or wrong samples: n are drawn, of which shares turn right and turn wrong; the bound is their difference."""

    n: int
    rise: float
    fall: float

    @property
    def name(self) -> str:
        return f"{self.n} samples, {100 * self.rise:g} % turn right, {100 * self.fall:g} % wrong"

    @property
    def bound(self) -> float:
        return round(100.0 * (self.rise - self.fall), 9)


#: Shares that only turn wrong; 48.5 and 27.5 % are the worst of their n by `--exact`, which is how they were chosen.
LOSSES = ((60, 0.4), (60, 0.485), (135, 0.2), (135, 0.275), (400, 0.1), (2000, 0.02))
#: Superiority, between equal encoders; a margin that is just lost, by gains and losses; and by losses alone.
POPULATIONS = (
    *(Population(n=n, rise=each / 2, fall=each / 2) for n in (60, 135, 400, 2000) for each in (0.05, 0.15, 0.35)),
    *(Population(n=n, rise=each / 2 - 0.01, fall=each / 2 + 0.01) for n in (400, 2000) for each in (0.05, 0.15)),
    *(Population(n=n, rise=0.0, fall=each) for n, each in LOSSES),
)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Promotions among the null pairs, and the same among those of which FEW samples or more changed."""

    name: str
    bound: float
    pairs: int
    promoted: int
    many: int
    promoted_of_many: int

    @property
    def row(self) -> str:
        kind = "superiority" if self.bound >= 0 else f"margin of {-self.bound:g}"
        cells = (self.name, kind, _share(self.promoted, self.pairs), _share(self.promoted_of_many, self.many))
        return f"| {' | '.join(cells)} |"


def _share(k: int, n: int) -> str:
    if not n:
        return "none"
    low, high = share_bounds(k, n, 0.95)
    return f"{100 * k / n:.1f} % ({100 * low:.1f} to {100 * high:.1f}), n = {n}"


def of_population(population: Population, pairs: int, seed: int) -> Iterator[Pair]:
    """Null pairs of right or wrong samples."""
    rng = np.random.default_rng(seed)
    items = [[Item(id=str(i), type="all", value=float(value)) for i in range(population.n)] for value in (0, 1)]
    for _ in range(pairs):
        drawn = rng.random(population.n)
        falls, rises = drawn < population.fall, drawn >= 1.0 - population.rise
        before = [items[int(fell)][i] for i, fell in enumerate(falls)]
        after = [items[int(rose)][i] for i, rose in enumerate(rises)]
        yield _scores(before, "reference"), _scores(after, "tuned")


def of_scores(reference: Scores, tuned: Scores, pairs: int, seed: int) -> Iterator[Pair]:
    """Null pairs of samples that were measured, each with all its items."""
    rng = np.random.default_rng(seed)
    samples: dict[str, tuple[list[Item], list[Item]]] = defaultdict(lambda: ([], []))
    for side, scores in enumerate((reference, tuned)):
        for item in scores.items:
            samples[item.sample][side].append(item)
    known = list(samples.values())
    for _ in range(pairs):
        sides: tuple[list[Item], list[Item]] = ([], [])
        for i, (each, swapped) in enumerate(
            zip(rng.integers(len(known), size=len(known)), rng.random(len(known)) < 0.5, strict=True)
        ):
            for side in (0, 1):
                sides[side].extend(_renamed(item, i) for item in known[each][side ^ int(swapped)])
        yield replace(reference, items=tuple(sides[0])), replace(tuned, items=tuple(sides[1]))


def rate(name: str, bound: float, drawn: Iterator[Pair], pairs: int, *, resamples: int, confidence: float) -> Rate:
    """Let the gate judge every pair by one rule."""
    promoted = many = promoted_of_many = 0
    for seed, (before, after) in enumerate(tqdm(drawn, total=pairs, desc=name, leave=False)):
        rule = Rule(benchmark=after.benchmark, gain_above=bound, data_sha256="")
        decision = decide(
            {before.benchmark: before}, {after.benchmark: after}, [rule],
            confidence=confidence, resamples=resamples, seed=seed, power=0.8, looks=1,
        )  # fmt: skip
        gain = decision.findings[0].gain
        assert gain is not None, decision.sentences
        promoted += decision.passed
        many += gain.changed >= FEW
        promoted_of_many += decision.passed and gain.changed >= FEW
    return Rate(name=name, bound=bound, pairs=pairs, promoted=promoted, many=many, promoted_of_many=promoted_of_many)


def worst_of_losses(n: int, confidence: float) -> tuple[float, float]:
    """The share of n samples, in steps of half a percent, whose loss the gate passes over most often, and how often.

    Nothing is drawn: the outcomes are added up, and a bootstrap's quantile of losses alone is the binomial's.
    """
    k = np.arange(n + 1)
    low = -binom.ppf((1.0 + confidence) / 2.0, n, k / n) / n
    low[:FEW] = [gain_bounds(0, int(each), n, confidence)[0] for each in k[:FEW]]
    shares = np.arange(0.005, 0.9, 0.005)
    errs = [float(binom.pmf(k, n, share)[low > -share + 1e-12].sum()) for share in shares]
    worst = int(np.argmax(errs))
    return float(shares[worst]), errs[worst]


def _scores(items: list[Item], role: str) -> Scores:
    return Scores(benchmark="null", role=role, method="null", unit="%", protocol="", data_sha256="d" * 64,  # type: ignore[arg-type]
                  encoder_sha256=role, items=tuple(items))  # fmt: skip


def _renamed(item: Item, i: int) -> Item:
    part = item.id.rpartition("@")
    return replace(item, id=f"{i}@{part[2]}" if part[0] else str(i))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exact", action="store_true", help="the worst share of losses alone, by adding up")
    parser.add_argument("--scores", type=Path, nargs="+", help="folders with scores files of two encoders")
    options = parser.parse_args()
    section = read_params(ROOT / "params.yaml")["compare"]
    how = {"resamples": section["resamples"], "confidence": section["confidence"]}
    if options.exact:
        for n in (40, 60, 100, 135, 200, 400, 1000, 2000):
            share, err = worst_of_losses(n, section["confidence"])
            print(f"{n} samples: at worst {100 * err:.1f} %, where {100 * share:.1f} % turn wrong", flush=True)
        return
    print("| null pairs | rule | promoted (95 % interval) | the same where 20 samples or more changed |")
    print("|---|---|---|---|")
    if options.scores:
        for name, roles in collect_scores(options.scores).items():
            before, after = roles["reference"], roles["tuned"]
            label = f"{name}, {after.unit}, {len({item.sample for item in after.items})} samples measured"
            drawn = of_scores(before, after, options.pairs, options.seed)
            print(rate(label, 0.0, drawn, options.pairs, **how).row, flush=True)
        return
    for population in POPULATIONS:
        drawn = of_population(population, options.pairs, options.seed)
        print(rate(population.name, population.bound, drawn, options.pairs, **how).row, flush=True)


if __name__ == "__main__":
    main()
