"""The study: every method over several seeds, each seed with its own world, reference and generator.

What is done is kept and not done again, so a study that was stopped goes on where it was.
"""

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.config import build
from un2clip.report import Comparison, compare_scores
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


def _runner(params: Mapping[str, Any], world: Path) -> Callable[..., None]:
    """Run a stage with names below `world`; its last name is its output, made elsewhere and renamed when complete."""

    def run(stage: str, **names: Any) -> None:
        paths = {
            k: v if k in ("seed", "method") or (stage, k) == ("evaluate", "benchmark") else world / v
            for k, v in names.items()
        }
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
        get_stage(stage)(stage_params(stage, params[stage]), **paths | {output: partial})
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
    """Markdown: one table a benchmark and its types; a row a method, a column a seed, then mean and deviation of the seeds.

    A cell is `reference → tuned (difference, interval)`; the spread is the sample standard deviation of the differences.
    """
    methods = list(dict.fromkeys(method for _, method, _ in results))
    seeds = list(dict.fromkeys(seed for seed, _, _ in results))
    found = {(seed, method): compared for seed, method, compared in results}
    lines: list[str] = []
    for benchmark in results[0][2]:
        unit = results[0][2][benchmark].unit
        scale, digits = (1000.0, 3) if unit == "mse" else (1.0, 1)
        name = "thousandths of a squared error, less is better" if unit == "mse" else "%"
        lines += [f"\n### {benchmark} ({name}), n = {results[0][2][benchmark].whole.difference.n} a seed\n"]
        lines += ["| method | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean difference | deviation |"]
        lines += ["|---|" + "---|" * (len(seeds) + 2)]
        for method in methods:
            cells, differences = [], []
            for seed in seeds:
                if (compared := found.get((seed, method))) is None:
                    cells.append("")
                    continue
                row = compared[benchmark].whole
                d = row.difference
                differences.append(scale * d.mean)
                cells.append(
                    f"{scale * row.reference:.{digits}f} → {scale * row.tuned:.{digits}f} "
                    f"({scale * d.mean:+.{digits}f}, {scale * d.low:+.{digits}f} to {scale * d.high:+.{digits}f})"
                )
            deviation = statistics.stdev(differences) if len(differences) > 1 else math.nan
            lines.append(
                f"| {method} | {' | '.join(cells)} | {statistics.mean(differences):+.{digits}f} | {deviation:.{digits}f} |"
            )
        types = [row.type for row in results[0][2][benchmark].types]
        if 1 < len(types) <= 12:
            lines += ["\nBy type, reference → tuned, mean over seeds:\n", "| method | " + " | ".join(types) + " |"]
            lines += ["|---|" + "---|" * len(types)]
            for method in methods:
                rows = [
                    [
                        row
                        for (_, m), c in found.items()
                        if m == method
                        for row in c[benchmark].types
                        if row.type == kind
                    ]
                    for kind in types
                ]
                cells = [
                    f"{scale * statistics.mean(r.reference for r in each):.{digits}f} → "
                    f"{scale * statistics.mean(r.tuned for r in each):.{digits}f}"
                    for each in rows
                ]
                lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"
