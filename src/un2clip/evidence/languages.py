"""What encoders are to language models: one question set, two encoders, several seeds of the language model.

A language model that was trained with another seed answers otherwise, often by more than the encoders differ. So a
difference has two intervals, over the questions and over the seeds, and is called better or worse only where both
exclude 0 and it is larger than the seeds' spread. Of one seed nothing is known of that, and nothing is called so.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from un2clip.errors import UserError
from un2clip.evidence.scores import ROLES, Scores, load_scores, mismatch
from un2clip.evidence.statistics import Difference, mean_difference, t_interval
from un2clip.evidence.units import get_unit
from un2clip.files.outputs import write_json
from un2clip.files.texts import read_json

#: A scores file of an assistant, whose name keeps it apart from those of encoders.
ASKED = "asked.json"
SEED, READ = "language_seed", "read_sha256"
Pairs = Mapping[int, tuple[Scores, Scores]]


@dataclass(frozen=True, kw_only=True)
class AssistantLineage:
    """lineage.json of an assistant.

    Attributes:
        method: what made the encoder that it reads: a row of the method table, reference, or imported.
        seed: of the language model.
        params: the section `assistant` that it trained with.
        steps_done, corrupt: steps of both phases, and conversations that were left out.
        parents: encoder, language, pictures, alignment, instruction -> hash.
        assistant_sha256: of its weights.
    """

    method: str
    seed: int
    params: dict[str, Any]
    steps_done: int
    corrupt: int
    parents: dict[str, str]
    assistant_sha256: str

    def __post_init__(self) -> None:
        if "encoder" not in self.parents:
            raise ValueError("parents does not say which encoder it reads (parents.encoder)")


@dataclass(frozen=True, kw_only=True)
class OfSeed:
    """What the two assistants of one seed reached, in the unit."""

    seed: int
    reference: float
    tuned: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """Both encoders on one benchmark, over the seeds of their language models, in the benchmark's unit.

    Attributes:
        reference, tuned: means over the seeds.
        difference: its mean over the seeds, with the interval over samples.
        seeds: in the order of the pairs.
        spread: sample standard deviation of the seeds' differences; None of one seed.
        low, high: Student's t interval of the mean difference over the seeds; None of one seed.
        reading: better | worse | noise | unknown (of one seed).
    """

    benchmark: str
    unit: str
    protocol: str
    data_sha256: str
    reference: float
    tuned: float
    difference: Difference
    seeds: tuple[OfSeed, ...]
    spread: float | None
    low: float | None
    high: float | None
    reading: str

    def __post_init__(self) -> None:
        get_unit(self.unit)


def over_seeds(pairs: Pairs, *, confidence: float, resamples: int, seed: int) -> OverSeeds:
    """Compare two encoders by the answers of their assistants.

    Args:
        pairs: seed of the language model -> (reference, tuned), all on the same questions; in the report's order.
        confidence, resamples, seed: of the intervals.

    Raises:
        UserError: two scores may not be compared.
    """
    every = [scores for pair in pairs.values() for scores in pair]
    first = every[0]
    for other in every[1:]:
        if why := mismatch(first, other):
            raise UserError(f"{first.benchmark}: the answers of two assistants cannot be compared: {why}")
    of_seeds = [
        OfSeed(seed=number, reference=before.score, tuned=after.score, difference=after.score - before.score)
        for number, (before, after) in pairs.items()
    ]
    differences = [each.difference for each in of_seeds]
    difference = mean_difference(
        [(before.items, after.items) for _, (before, after) in pairs.items()],
        unit=first.unit, confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip
    spread = stdev(differences) if len(differences) > 1 else None
    low, high = t_interval(differences, confidence)
    return OverSeeds(
        benchmark=first.benchmark,
        unit=first.unit,
        protocol=first.protocol,
        data_sha256=first.data_sha256,
        reference=mean(each.reference for each in of_seeds),
        tuned=mean(each.tuned for each in of_seeds),
        difference=difference,
        seeds=tuple(of_seeds),
        spread=spread,
        low=low,
        high=high,
        reading=_reading(difference, spread, low, high, lower_is_better=first.lower_is_better),
    )


def _reading(
    difference: Difference, spread: float | None, low: float | None, high: float | None, *, lower_is_better: bool
) -> str:
    if spread is None or low is None or high is None:
        return "unknown"
    if difference.is_noise or low <= 0.0 <= high or abs(difference.mean) <= spread:
        return "noise"
    return "better" if (difference.mean < 0) == lower_is_better else "worse"


def in_words(found: OverSeeds) -> str:
    """What was shown, as a sentence."""
    if found.spread is None:
        return "the spread over language models is unknown: one was trained"
    if found.reading in ("better", "worse"):
        return f"{found.reading}, beyond the spread over {len(found.seeds)} language models"
    if abs(found.difference.mean) <= found.spread:
        return f"nothing shown: no larger than the spread over {len(found.seeds)} language models"
    what = "questions" if found.difference.is_noise else "language models"
    return f"nothing shown: the interval over {what} holds 0"


def save_asked(scores: Scores, seed: int, read: str, folder: Path) -> None:
    """Write the scores of an assistant, the seed of its language model, and the hash of the encoder that it reads."""
    write_json(folder / ASKED, {SEED: seed, READ: read} | scores.content())


def collect_asked(folders: Sequence[Path], encoders: Mapping[str, str] | None = None) -> dict[str, Pairs]:
    """Benchmark -> seed -> (reference, tuned), of every scores file of an assistant below the folders.

    Args:
        encoders: role -> hash of the encoder that its assistants must read; None where any will do.

    Raises:
        UserError: a file is broken, a role is there twice, lacks the other, or read another encoder.
    """
    found: dict[str, dict[int, dict[str, Scores]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(path for folder in folders for path in folder.rglob(ASKED)):
        scores, said = load_scores(path), read_json(path)
        seed, read = said.get(SEED), said.get(READ)
        if type(seed) is not int or type(read) is not str:
            raise UserError(f"{path} does not say the seed of its language model and its encoder; run `ask` again")
        if encoders is not None and read != encoders[scores.role]:
            raise UserError(
                f"{path}: the assistant ({scores.role}) reads encoder {read[:12]}, and this is about "
                f"{encoders[scores.role][:12]}; run `assistant` and `ask` again"
            )
        of_seed = found[scores.benchmark][seed]
        if scores.role in of_seed:
            raise UserError(f"two files of {scores.role}, seed {seed}, on {scores.benchmark}; the second is {path}")
        of_seed[scores.role] = scores
    return {
        name: {seed: _pair(name, seed, roles) for seed, roles in seeds.items()} for name, seeds in sorted(found.items())
    }


def _pair(benchmark: str, seed: int, roles: Mapping[str, Scores]) -> tuple[Scores, Scores]:
    if missing := [role for role in ROLES if role not in roles]:
        raise UserError(f"{benchmark} has no answers of the {missing[0]} assistant of seed {seed}; run `ask` for it")
    return roles["reference"], roles["tuned"]
