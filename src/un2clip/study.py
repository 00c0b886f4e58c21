"""The study: every method over several seeds, each seed with its own world, reference and generator.

What is done is kept and not done again, so a study that was stopped goes on where it was.
"""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from un2clip.config import UserError, build
from un2clip.report import LONGEST, Comparison, Row, compare_scores
from un2clip.scores import collect_scores
from un2clip.stages import get_stage, stage_params
from un2clip.stages.compare import Compare


@dataclass(frozen=True, kw_only=True)
class Study:
    """The section `study` of params.yaml.

    Attributes:
        seeds: held out from all tuning.
        methods: rows of the method table.
    """

    seeds: tuple[int, ...]
    methods: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.seeds or not self.methods:
            raise ValueError("seeds and methods must not be empty")


def study(params: Mapping[str, Any], to: Path) -> None:
    """Run all methods over all seeds and write study.json and study.md below `to`.

    Args:
        params: the whole of params.yaml; its section `study` says which seeds and methods.
        to: folder with one folder a seed; finished parts in it are not run again.
    """
    section = build(Study, params["study"], "study")
    compare = build(Compare, params["compare"], "compare")
    _same_numbers(params, to / "params.json")
    results: list[tuple[int, str, dict[str, Comparison]]] = []
    for seed in section.seeds:
        world = to / f"seed{seed}"
        run = _runner(params, world)
        run("shapes", seed=seed, images="images", benchmarks="benchmarks")
        run("ingest", images="images", shards="shards")
        run("backbones", seed=seed, images="images", backbones="backbones")
        for method in section.methods:
            made = {"shards": "shards", "backbones": "backbones"}
            run("finetune", method=method, seed=seed, **made, encoder=f"{method}/encoder")
            tuned = made | {"encoder": f"{method}/encoder"}
            run("diffusion_loss", seed=seed, **tuned, scores=f"{method}/scores/diffusion_loss")
            del tuned["shards"]
            for benchmark in params["benchmarks"]:
                run(
                    "evaluate",
                    benchmark=benchmark,
                    benchmarks="benchmarks",
                    **tuned,
                    scores=f"{method}/scores/{benchmark}",
                )
            pairs = collect_scores([world / method / "scores"])
            results.append(
                (seed, method, {
                    name: compare_scores(pair["reference"], pair["tuned"], seed=seed, **vars(compare))
                    for name, pair in pairs.items()
                })
            )  # fmt: skip
            _write(to, results)
    print((to / "study.md").read_text())


def _same_numbers(params: Mapping[str, Any], kept: Path) -> None:
    """Refuse to continue a study that was begun with other numbers; its seeds and methods may grow."""
    numbers = json.dumps({name: value for name, value in params.items() if name != "study"}, sort_keys=True, indent=1)
    if kept.is_file() and kept.read_text() != numbers:
        raise UserError(f"{kept.parent} holds a study made with other numbers; give --to another folder, or delete it")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(numbers)


def _runner(params: Mapping[str, Any], world: Path) -> Callable[..., None]:
    """Run a stage with names below `world`; its last name is its output, made elsewhere and renamed when complete."""

    def run(stage: str, **names: Any) -> None:
        function = get_stage(stage)
        hints = get_type_hints(function)
        if "device" in hints:
            names = {"device": params["device"]} | names
        paths = {name: world / value if hints[name] is Path else value for name, value in names.items()}
        output = list(paths)[-1]
        if paths[output].exists():
            return
        print(f"study: {world.name} {stage} {names.get('method', '')} {names.get('benchmark', '')}", flush=True)
        started, final = time.monotonic(), paths[output]
        partial = final.with_name(final.name + ".partial")
        for leftover in (partial, paths.get("images") if stage == "shapes" else None):
            if leftover is not None and leftover.exists():
                shutil.rmtree(leftover)
        partial.parent.mkdir(parents=True, exist_ok=True)
        function(stage_params(stage, params[stage]), **paths | {output: partial})
        partial.rename(final)
        with (world / "seconds.jsonl").open("a") as file:
            seconds = round(time.monotonic() - started, 1)
            file.write(json.dumps({"stage": stage, "output": str(final.relative_to(world)), "seconds": seconds}) + "\n")

    return run


def _write(to: Path, results: list[tuple[int, str, dict[str, Comparison]]]) -> None:
    rows = [
        {"seed": seed, "method": method, "benchmarks": {name: each.as_json() for name, each in compared.items()}}
        for seed, method, compared in results
    ]
    (to / "study.json").write_text(json.dumps(rows, indent=1) + "\n")
    (to / "study.md").write_text(table(results))


def table(results: list[tuple[int, str, dict[str, Comparison]]]) -> str:
    """Markdown: for each benchmark a row a method and a column a seed; then its types, as means over the seeds.

    A cell is `reference → tuned (difference, interval)`. The spread is the sample standard deviation of the
    seeds' differences.
    """
    methods = list(dict.fromkeys(method for _, method, _ in results))
    seeds = list(dict.fromkeys(seed for seed, _, _ in results))
    found = {(seed, method): compared for seed, method, compared in results}
    lines: list[str] = []
    for benchmark, first in results[0][2].items():
        show = _Numbers(first.unit)
        lines += [f"\n### {benchmark} ({show.name}), n = {first.whole.difference.n} a seed\n"]
        lines += _row("method", *(f"seed {seed}" for seed in seeds), "mean difference", "deviation")
        lines += ["|---" * (len(seeds) + 3) + "|"]
        for method in methods:
            rows = [found[seed, method][benchmark].whole if (seed, method) in found else None for seed in seeds]
            means = [row.difference.mean for row in rows if row]
            spread = show(statistics.stdev(means)) if len(means) > 1 else "-"
            lines += _row(method, *map(show.cell, rows), show(statistics.mean(means), "+"), spread)
        types = [row.type for row in first.types]
        if 1 < len(types) <= LONGEST:
            lines += ["\nBy type, reference → tuned, means over the seeds:\n", *_row("method", *types)]
            lines += ["|---" * (len(types) + 1) + "|"]
            for method in methods:
                compared = [each[benchmark].types for (_, name), each in found.items() if name == method]
                columns = list(zip(*compared, strict=True))
                lines += _row(method, *(show.arrow(column) for column in columns))
    return "\n".join(lines).strip() + "\n"


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


class _Numbers:
    """A benchmark's numbers as text: percent with one decimal, a loss in thousandths with three."""

    def __init__(self, unit: str) -> None:
        self.name = "thousandths of a squared error, less is better" if unit == "mse" else unit
        self._scale, self._digits = (1000.0, 3) if unit == "mse" else (1.0, 1)

    def __call__(self, value: float, sign: str = "") -> str:
        return f"{self._scale * value:{sign}.{self._digits}f}"

    def cell(self, row: Row | None) -> str:
        if row is None:
            return ""
        d = row.difference
        interval = f"{self(d.mean, '+')}, {self(d.low, '+')} to {self(d.high, '+')}"
        return f"{self(row.reference)} → {self(row.tuned)} ({interval})"

    def arrow(self, rows: Sequence[Row]) -> str:
        before, after = (statistics.mean(getattr(row, name) for row in rows) for name in ("reference", "tuned"))
        return f"{self(before)} → {self(after)}"
