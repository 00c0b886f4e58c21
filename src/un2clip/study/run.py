"""The study: every method over several seeds, each seed with its own world, reference and generator.

What is done is kept and not done again, so a study that was stopped goes on where it was. It writes study.md (tables),
study.json (every comparison), summary.json (means and intervals over the seeds) and study.svg (the figure).
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from un2clip.config import build, flatten, merge
from un2clip.errors import UserError
from un2clip.evidence.report import compare_scores
from un2clip.evidence.scores import collect_scores
from un2clip.files.texts import read_json, read_text
from un2clip.stages import get_stage, stage_params
from un2clip.stages.compare import Compare
from un2clip.study.figure import plot_changes
from un2clip.study.ranking import ranking_table, rankings
from un2clip.study.seeds import Result, summary, table
from un2clip.training.config import DECIDING

#: Parts of params.yaml that decide what a study finds.
SECTIONS = (
    "shapes", "ingest", "backbones", "latents", "benchmarks", "finetune", "diffusion_loss", "evaluate", "compare"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """The section `study` of params.yaml.

    Attributes:
        seeds: held out from all tuning.
        methods: rows of the method table.
        lengths: un2clip is also trained for these numbers of steps, as `un2clip@STEPS`: checkpoints for the ranking.
        detail, language: the figure's two benchmarks; the loss's ranking is compared with the first.
    """

    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    detail: str
    language: str

    def __post_init__(self) -> None:
        if not self.seeds or not self.methods:
            raise ValueError("seeds and methods must not be empty")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {list(self.seeds)}")
        if min(self.lengths, default=1) < 1:
            raise ValueError(f"lengths must be at least 1 step each, got {list(self.lengths)}")

    def check(self, benchmarks: Sequence[str]) -> None:
        """Raise a UserError unless the figure's benchmarks are measured."""
        for name in (self.detail, self.language):
            if name not in benchmarks:
                raise UserError(f"study.detail and study.language must be of {', '.join(benchmarks)}, got {name}")


def study(params: Mapping[str, Any], to: Path) -> None:
    """Run all methods over all seeds and write the results below `to`.

    Args:
        params: the whole of params.yaml; its section `study` says which seeds and methods.
        to: folder with one folder a seed; finished parts in it are not run again.
    """
    section = build(Study, params["study"], "study")
    section.check(params["benchmarks"])
    compare = build(Compare, params["compare"], "compare")
    _same_numbers(params, to / "params.json")
    results: list[Result] = []
    for seed in section.seeds:
        world = to / f"seed{seed}"
        run = _runner(params, world)
        run("shapes", seed=seed, images="images", benchmarks="benchmarks")
        run("ingest", images="images", shards="shards")
        run("backbones", seed=seed, images="images", backbones="backbones")
        run("latents", shards="shards", backbones="backbones", latents="latents")
        made = {"shards": "shards", "backbones": "backbones", "latents": "latents"}
        trained = [(method, method, params) for method in section.methods]
        trained += [(f"un2clip@{steps}", "un2clip", _with_steps(params, steps)) for steps in section.lengths]
        for name, method, numbers in trained:
            _runner(numbers, world)("finetune", method=method, seed=seed, **made, encoder=f"{name}/encoder")
            tuned = made | {"encoder": f"{name}/encoder"}
            run("diffusion_loss", seed=seed, **tuned, scores=f"{name}/scores/diffusion_loss")
            del tuned["shards"], tuned["latents"]
            for benchmark in params["benchmarks"]:
                run(
                    "evaluate",
                    benchmark=benchmark,
                    benchmarks="benchmarks",
                    **tuned,
                    scores=f"{name}/scores/{benchmark}",
                )
            pairs = collect_scores([world / name / "scores"])
            results.append(
                (seed, name, {
                    name: compare_scores(pair["reference"], pair["tuned"], seed=seed, **vars(compare))
                    for name, pair in pairs.items()
                })
            )  # fmt: skip
        _write(to, results, section, compare)  # a seed at a time: its bootstraps take seconds
    print(read_text(to / "study.md"))


def _with_steps(params: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return merge(params, {"finetune": {"phases": {"tune": {"steps": steps}}}})


def _same_numbers(params: Mapping[str, Any], kept: Path) -> None:
    """Refuse to continue a study that was begun with other numbers; its seeds and methods may grow."""
    now = _deciding(params)
    if kept.is_file():
        before = _deciding(read_json(kept))
        other = [
            f"{name} {before.get(name, 'absent')} there, {now.get(name, 'absent')} now"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if other:
            raise UserError(
                f"{kept.parent} holds a study made with other numbers ({'; '.join(other)}); give --to another folder, "
                f"or delete it. Where a number is new and changes nothing of what is there, add it to {kept}"
            )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(params, sort_keys=True, indent=1))


def _deciding(params: Mapping[str, Any]) -> dict[str, str]:
    """The numbers that decide the results, by their full names: not how it is computed, and no other stage's."""
    flat = flatten({name: params[name] for name in SECTIONS})
    running = {f"finetune.compute.{name}" for name in DECIDING}
    return {name: value for name, value in flat.items() if not name.startswith("finetune.compute.") or name in running}


def _runner(params: Mapping[str, Any], world: Path) -> Callable[..., None]:
    """Run a stage with names below `world`; its last name is its output, made elsewhere and renamed when complete."""

    def run(stage: str, **names: Any) -> None:
        function = get_stage(stage)
        hints = get_type_hints(function)
        defaults = {"device": params["device"], "checkpoints": str(world / "checkpoints")}
        names = {name: value for name, value in defaults.items() if name in hints} | names
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


def _write(to: Path, results: list[Result], section: Study, compare: Compare) -> None:
    rows = [
        {"seed": seed, "method": method, "benchmarks": {name: each.as_json() for name, each in compared.items()}}
        for seed, method, compared in results
    ]
    ranked = rankings(results, section.detail, seed=0, confidence=compare.confidence, resamples=compare.resamples)
    (to / "study.json").write_text(json.dumps(rows, indent=1) + "\n")
    means = summary(results, compare.confidence)
    content = {"confidence": compare.confidence, "changes": means, "rankings": list(map(dataclasses.asdict, ranked))}
    (to / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    ranking = ranking_table(ranked, section.detail, compare.confidence)
    (to / "study.md").write_text(f"{table(results, compare.confidence)}\n{ranking}")
    (to / "study.svg").write_bytes(plot_changes(means, section.language, section.detail))
