"""The study: every method over several seeds, each seed with a world of its own.

It writes runs/seedN/ROW.json (a fine-tuning: every comparison, assistants, seconds, hash) as soon as each is there,
study.md (tables), summary.json (means and intervals over the seeds) and study.svg (the figure). A run whose file is
there is not made again, though its world and encoder be gone. So a study of many hours can be made in parts, or by
several processes with a seed each: the tables are of all runs in the folder.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from un2clip.config import build, flatten, read_record
from un2clip.errors import UserError
from un2clip.evaluation.measuring import get_benchmark
from un2clip.evidence.languages import OverSeeds, collect_asked, in_words, over_seeds
from un2clip.evidence.report import Comparison, compare_scores, number
from un2clip.evidence.scores import Scores, collect_scores, load_scores
from un2clip.files.outputs import write_json
from un2clip.files.texts import read_json, read_lines, read_text
from un2clip.methods.table import get_method
from un2clip.models.clip import encoder_sha256
from un2clip.stages import get_stage, stage_params
from un2clip.stages.compare import Compare
from un2clip.stages.diffusion_loss import diffusion_loss_knowing
from un2clip.stages.evaluate import evaluate_knowing
from un2clip.study.assistants import check_asks
from un2clip.study.figure import plot_changes
from un2clip.study.ranking import ranking_table, rankings
from un2clip.study.seeds import Result, summary, table
from un2clip.study.variants import RANDOM, check_variant, perturb, varied
from un2clip.training.config import DECIDING

#: In a seed's world: what each stage took.
SECONDS = "seconds.jsonl"
#: The stages that score a reference, as they are where its scores are known.
KNOWING: dict[str, Callable[..., None]] = {"evaluate": evaluate_knowing, "diffusion_loss": diffusion_loss_knowing}
#: Parts of params.yaml that decide what a study finds.
SECTIONS = (
    "shapes", "ingest", "backbones", "latents", "benchmarks", "finetune", "diffusion_loss", "evaluate", "compare"
)  # fmt: skip
#: And these, where language models read the encoders.
LANGUAGES = ("language_seeds", "questions", "assistant", "ask")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The section `study` of params.yaml.

    Attributes:
        seeds: held out from all tuning.
        methods: rows of the method table.
        variants: ROW@KEY=VALUE, the row with another number below `finetune`; or ROW@random, the row's reference
            changed at random by as much as the row changed it.
        detail, language: the figure's two benchmarks; the loss's ranking is compared with the first.
    """

    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    detail: str
    language: str

    def __post_init__(self) -> None:
        if not self.seeds or not self.methods:
            raise ValueError("seeds and methods must not be empty")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {list(self.seeds)}")
        for variant in self.variants:
            check_variant(variant)

    def check(self, benchmarks: Sequence[str]) -> None:
        """Raise a UserError unless the figure's benchmarks are measured."""
        for name in (self.detail, self.language):
            if name not in benchmarks:
                raise UserError(f"study.detail and study.language must be of {', '.join(benchmarks)}, got {name}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """runs/seedN/ROW.json: one fine-tuning of a study.

    Attributes:
        method: a row of the method table, or a variant of one.
        seconds: of the fine-tuning; None where none was made, or it was made in more than one call.
        encoder_sha256: of its encoder.
        benchmarks: the encoder against its reference, on each.
        assistants: the same by what language models answer, over `language_seeds`, where there are some.
    """

    seed: int
    method: str
    seconds: float | None
    encoder_sha256: str
    benchmarks: tuple[Comparison, ...]
    assistants: tuple[OverSeeds, ...] = ()


def study(params: Mapping[str, Any], to: Path, work: Path) -> None:
    """Run all methods over all seeds and write the results below `to`.

    Args:
        params: the whole of params.yaml; its section `study` says which seeds and methods.
        to: folder of the results, small enough to be kept in a repository.
        work: folder with one folder a seed, of worlds, encoders and scores; it may be deleted afterwards.
    """
    section = build(Study, params["study"], "study")
    section.check(params["benchmarks"])
    compare = build(Compare, params["compare"], "compare")
    if params["language_seeds"]:
        check_asks(params)
    for folder in (to, work):
        _same_numbers(params, folder / "params.json")
    for seed in section.seeds:
        for name in (*section.methods, *section.variants):
            kept = to / "runs" / f"seed{seed}" / f"{name}.json"
            if not kept.is_file():
                write_json(kept, dataclasses.asdict(_run(params, name, seed, work / f"seed{seed}", compare)))
        _write(to, section, compare)
    print(read_text(to / "study.md"))


def _run(params: Mapping[str, Any], name: str, seed: int, world: Path, compare: Compare) -> Run:
    """Fine-tune by a row or a variant on a seed's world, and measure on everything."""
    run, (row, _, word) = _runner(params, world), name.partition("@")
    run("shapes", seed=seed, images="images", instructions="instructions", benchmarks="benchmarks")
    run("ingest", images="images", shards="shards")
    run("backbones", seed=seed, images="images", backbones="backbones")
    run("latents", shards="shards", backbones="backbones", latents="latents")
    made = {"shards": "shards", "backbones": "backbones", "latents": "latents"}
    seconds, encoder = None, f"{name}/encoder"
    if word == RANDOM:
        run("finetune", method=row, seed=seed, **made, encoder=f"{row}/encoder")
        if not (world / encoder).exists():
            perturb(world / row / "encoder", world / "backbones", seed=seed, encoder=world / encoder)
    else:
        tune = _runner(varied(params, name) if word else params, world)
        seconds = tune("finetune", method=row, seed=seed, **made, encoder=encoder)
    scores = f"{name}/scores/diffusion_loss"
    run("diffusion_loss", seed=seed, **made, encoder=encoder, scores=scores, known=_known(world, "diffusion_loss"))
    asked = {"benchmarks": "benchmarks", "backbones": "backbones", "encoder": encoder}
    for benchmark in params["benchmarks"]:
        if get_benchmark(benchmark, "clip", "autoencoder").file.MODEL == "autoencoder" and not gives_back(row, word):
            continue  # its pictures are drawn from noise
        scores = f"{name}/scores/{benchmark}"
        run("evaluate", benchmark=benchmark, **asked, scores=scores, known=_known(world, benchmark))
    pairs = collect_scores([world / name / "scores"]).values()
    compared = [compare_scores(pair["reference"], pair["tuned"], seed=seed, **vars(compare)) for pair in pairs]
    return Run(
        seed=seed,
        method=name,
        seconds=seconds,
        encoder_sha256=encoder_sha256(world / encoder),
        benchmarks=tuple(compared),
        assistants=tuple(read_by_languages(params, name, seed, world, compare)),
    )


def read_by_languages(
    params: Mapping[str, Any], name: str, seed: int, world: Path, compare: Compare
) -> list[OverSeeds]:
    """Train and ask an assistant of each encoder for each of `language_seeds`; the reference's, once in a world."""
    run, encoders = _runner(params, world), {"reference": "backbones", "tuned": f"{name}/encoder"}
    for each in params["language_seeds"]:
        folders = {"reference": f"languages/{each}", "tuned": f"{name}/languages/{each}"}
        for role, folder in folders.items():
            learns = {"instructions": "instructions", "encoder": encoders[role]}
            run("assistant", language_seed=each, **learns, assistant=folder)
        asked = {"questions": list(params["questions"]), "benchmarks": "benchmarks"}
        run("ask", **asked, **folders, scores=f"{name}/asked/{each}")
    return [
        over_seeds(pairs, seed=seed, confidence=compare.confidence, resamples=compare.resamples)
        for pairs in collect_asked([world / name / "asked"] if params["language_seeds"] else []).values()
    ]


def _known(world: Path, benchmark: str) -> list[Scores]:
    """What another row's run has of the reference, which is the same in all of a world."""
    for path in sorted(world.glob(f"*/scores/{benchmark}/reference.json")):
        with suppress(UserError):  # a damaged file: the next row's, or it is measured again
            return [load_scores(each) for each in (path, *sorted(path.parent.glob("*/reference.json")))]
    return []


def gives_back(row: str, word: str) -> bool:
    """Whether a row, or this variant of it, leaves a decoder that gives pictures back."""
    return get_method(row).decoder == "pixels" and word != RANDOM


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
                f"{kept.parent} holds a study made with other numbers ({'; '.join(other)}); give --to and --work other "
                f"folders, or delete it. Where a number is new and changes nothing of what is there, add it to {kept}"
            )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(params, sort_keys=True, indent=1))


def _deciding(params: Mapping[str, Any]) -> dict[str, str]:
    """The numbers that decide the results, by their full names: not how it is computed, and no other stage's."""
    sections = SECTIONS + (LANGUAGES if params.get("language_seeds") else ())
    flat = flatten({name: params[name] for name in sections})
    how = [(name, name.partition(".compute.")[2]) for name in flat if not name.endswith(".processes")]
    return {name: flat[name] for name, computed in how if not computed or computed in DECIDING}


def _runner(params: Mapping[str, Any], world: Path) -> Callable[..., float | None]:
    """Run a stage with names below `world`; its last name is its output, made elsewhere and renamed when complete.

    It gives the seconds that this took, now or in an earlier call; None where an earlier call was cut off in it. What
    is known of the reference is handed to a stage that takes it.
    """

    def run(stage: str, known: Sequence[Scores] = (), **names: Any) -> float | None:
        function: Callable[..., None] = get_stage(stage)
        hints = get_type_hints(function)
        defaults = {"device": params["device"], "checkpoints": str(world / "checkpoints")}
        names = {name: value for name, value in defaults.items() if name in hints} | names
        paths = {name: world / value if hints[name] is Path else value for name, value in names.items()}
        output = list(paths)[-1]
        final = paths[output]
        name = str(final.relative_to(world))
        if final.exists():
            return _seconds(world).get(name)
        print(f"study: {world.name} {stage} {names.get('method', '')} {names.get('benchmark', '')}", flush=True)
        begun = name in _seconds(world)
        _note(world, stage, name, None)
        started, partial = time.monotonic(), final.with_name(final.name + ".partial")
        for leftover in (partial, paths.get("images") if stage == "shapes" else None):
            if leftover is not None and leftover.exists():
                shutil.rmtree(leftover)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if known:
            function = functools.partial(KNOWING[stage], known=known)
        function(stage_params(stage, params[stage]), **paths | {output: partial})
        partial.rename(final)
        _note(world, stage, name, None if begun else round(time.monotonic() - started, 1))
        return _seconds(world)[name]

    return run


def _note(world: Path, stage: str, output: str, seconds: float | None) -> None:
    """Keep what an output took; None for one that is begun, or was begun twice."""
    world.mkdir(parents=True, exist_ok=True)
    with (world / SECONDS).open("a") as file:
        file.write(json.dumps({"stage": stage, "output": output, "seconds": seconds}) + "\n")


def _seconds(world: Path) -> dict[str, float | None]:
    """What was kept last of each output."""
    lines = map(json.loads, read_lines(world / SECONDS)) if (world / SECONDS).is_file() else ()
    return {line["output"]: line["seconds"] for line in lines}


def read_runs(to: Path) -> list[Run]:
    """All runs of a study, in no order that means anything."""
    return [read_record(Run, file, "study") for file in sorted((to / "runs").rglob("*.json"))]


def _write(to: Path, section: Study, compare: Compare) -> None:
    order = {name: i for i, name in enumerate((*section.methods, *section.variants))}
    runs = sorted(read_runs(to), key=lambda run: (run.seed, order.get(run.method, len(order)), run.method))
    results: list[Result] = [(run.seed, run.method, {each.benchmark: each for each in run.benchmarks}) for run in runs]
    interval: dict[str, Any] = {"confidence": compare.confidence, "resamples": compare.resamples}
    ranked = rankings(results, section.detail, seed=0, **interval)
    means = summary(results, compare.confidence)
    content = {"confidence": compare.confidence, "changes": means, "rankings": list(map(dataclasses.asdict, ranked))}
    (to / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    ranking = ranking_table(ranked, section.detail, compare.confidence)
    (to / "study.md").write_text(f"{table(results, compare.confidence)}\n{ranking}{_read_in_words(runs)}")
    (to / "study.svg").write_bytes(plot_changes(means, section.language, section.detail))


def _read_in_words(runs: Sequence[Run]) -> str:
    """A line for each world, method and benchmark that was asked of language models; "" where none was."""
    lines = [
        f"- world {run.seed}, `{run.method}`, `{each.benchmark}`: {number(each.reference, each.unit)} and "
        f"{number(each.tuned, each.unit)} {each.unit}, {in_words(each)}\n"
        for run in runs
        for each in run.assistants
    ]
    return "\nBy language models that read them:\n\n" + "".join(lines) if lines else ""
