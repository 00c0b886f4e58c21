"""Several seeds of a method: the mean of their differences, its spread, and an interval over the seeds.

The interval in a report covers the choice of test data; another training seed is another encoder. Only the spread
over seeds says what the method does.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.errors import UserError
from un2clip.evidence.report import LONGEST, Comparison, Row, read_report
from un2clip.evidence.statistics import t_interval
from un2clip.evidence.units import get_unit

#: Seed, method, benchmark -> comparison of that seed's two encoders.
Result = tuple[int, str, dict[str, Comparison]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The differences of one method's seeds on one benchmark, in its unit.

    Attributes:
        mean: of the differences.
        deviation: their sample standard deviation (k - 1); None for one seed.
        low, high: Student's t interval of the mean, mean -+ t * deviation / sqrt(k) with k - 1 degrees of freedom:
            the seeds are taken as draws of a normal law. None for one seed.
        seeds: k.
        certain: seeds whose own paired interval excludes 0.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    seeds: int
    certain: int


def spread(rows: Sequence[Row], confidence: float) -> Spread:
    """Aggregate one row a seed.

    Raises:
        ValueError: there is none.
    """
    if not rows:
        raise ValueError("a spread needs at least one seed, got 0")
    differences = [row.difference.mean for row in rows]
    low, high = t_interval(differences, confidence)
    return Spread(
        mean=statistics.mean(differences),
        deviation=statistics.stdev(differences) if len(rows) > 1 else None,
        low=low,
        high=high,
        seeds=len(rows),
        certain=sum(not row.difference.is_noise for row in rows),
    )


def summary(results: Sequence[Result], confidence: float) -> list[dict[str, Any]]:
    """For each benchmark and method: means over the seeds of reference and tuned, and their differences' `Spread`."""
    methods = dict.fromkeys(method for _, method, _ in results)
    lines = []
    for benchmark, first in _first(results).items():
        for method in methods:
            rows = [each[benchmark].whole for _, name, each in results if name == method and benchmark in each]
            if not rows:
                continue
            means = {name: statistics.mean(getattr(row, name) for row in rows) for name in ("reference", "tuned")}
            line = {"benchmark": benchmark, "unit": first.unit, "method": method}
            lines.append(line | means | dataclasses.asdict(spread(rows, confidence)))
    return lines


def aggregate(reports: Sequence[Path]) -> str:
    """The table of separately made runs of one method, from their report.json files (or the folders these lie in).

    Raises:
        UserError: fewer than two, a seed twice, or they differ in more than the seed.
    """
    if len(reports) < 2:
        raise UserError(f"aggregate needs the report.json of at least two seeds, got {len(reports)}")
    results: list[Result] = []
    first: dict[str, object] = {}
    for path in reports:
        file = path / "report.json" if path.is_dir() else path
        made = read_report(file)
        compared = {each.benchmark: each for each in made.benchmarks}
        same: dict[str, object] = {"method": made.method, "confidence": made.confidence}
        same |= {"parameters": made.lineage.params, "benchmarks": sorted(compared)}
        for name, each in compared.items():
            same |= {f"data of {name}": each.data_sha256, f"protocol of {name}": each.protocol}
            same |= {f"reference of {name}": each.reference_sha256, f"unit of {name}": each.unit}
            same |= {f"n of {name}": each.whole.difference.n}
        first = first or same
        for name, value in first.items():
            if same[name] != value:
                raise UserError(
                    f"only the seed may differ, but {name} does: {_short(value)} in {reports[0]}, "
                    f"{_short(same[name])} in {path}"
                )
        seed = made.lineage.seed
        if seed in [other for other, *_ in results]:
            raise UserError(f"seed {seed} is there twice; the second is {path}")
        results.append((seed, made.method, compared))
    return table(sorted(results, key=lambda result: result[0]), made.confidence)


def table(results: Sequence[Result], confidence: float) -> str:
    """Markdown: for each benchmark a row a method and a column a seed; then its types, as means over the seeds.

    A cell is `reference → tuned (difference, interval)`. Behind the seeds stands their `Spread`; "certain" counts the
    seeds whose own interval excludes 0.
    """
    methods = list(dict.fromkeys(method for _, method, _ in results))
    seeds = list(dict.fromkeys(seed for seed, _, _ in results))
    found = {(seed, method): compared for seed, method, compared in results}
    columns = ("mean difference", "deviation", f"{100 * confidence:g} % t interval over seeds", "certain")
    lines: list[str] = []
    for benchmark, first in _first(results).items():
        show = _Numbers(first.unit)
        lines += [f"\n### {benchmark} ({show.name}), n = {first.whole.difference.n} a seed\n"]
        lines += _row("method", *(f"seed {seed}" for seed in seeds), *columns)
        lines += ["|---" * (len(seeds) + 1 + len(columns)) + "|"]
        measured = [name for name in methods if any(benchmark in each for _, other, each in results if other == name)]
        for method in measured:
            of_seeds = (found.get((seed, method), {}).get(benchmark) for seed in seeds)
            rows = [each.whole if each else None for each in of_seeds]
            lines += _row(method, *map(show.cell, rows), *show.spread(spread([row for row in rows if row], confidence)))
        types = [row.type for row in first.types]
        if 1 < len(types) <= LONGEST:
            lines += ["\nBy type, reference → tuned, means over the seeds:\n", *_row("method", *types)]
            lines += ["|---" * (len(types) + 1) + "|"]
            for method in measured:
                compared = [each[benchmark].types for (_, name), each in found.items() if name == method]
                of_type = [[row for rows in compared for row in rows if row.type == name] for name in types]
                lines += _row(method, *map(show.arrow, of_type))
    return "\n".join(lines).strip() + "\n"


def _first(results: Sequence[Result]) -> dict[str, Comparison]:
    """Every benchmark that any run was measured on, and the first comparison on it; a row may have none of its own."""
    found: dict[str, Comparison] = {}
    for _, _, compared in results:
        found |= {name: each for name, each in compared.items() if name not in found}
    return found


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


class _Numbers:
    """A benchmark's numbers as text, as its unit has them in the study."""

    def __init__(self, unit: str) -> None:
        row = get_unit(unit)
        self.name = row.study_name
        self._scale, self._digits = row.study_scale, row.study_digits

    def __call__(self, value: float, sign: str = "") -> str:
        return f"{self._scale * value:{sign}.{self._digits}f}"

    def cell(self, row: Row | None) -> str:
        if row is None:
            return ""
        d = row.difference
        interval = "" if d.low is None or d.high is None else f", {self(d.low, '+')} to {self(d.high, '+')}"
        return f"{self(row.reference)} → {self(row.tuned)} ({self(d.mean, '+')}{interval})"

    def spread(self, each: Spread) -> tuple[str, str, str, str]:
        certain = f"{each.certain} of {each.seeds}"
        if each.deviation is None or each.low is None or each.high is None:
            return self(each.mean, "+"), "-", "-", certain
        return self(each.mean, "+"), self(each.deviation), f"{self(each.low, '+')} to {self(each.high, '+')}", certain

    def arrow(self, rows: Sequence[Row]) -> str:
        if not rows:
            return ""
        before, after = (statistics.mean(getattr(row, name) for row in rows) for name in ("reference", "tuned"))
        return f"{self(before)} → {self(after)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
