"""Calibrate, then claim: pairs are called MMVP-VLM once a released model has reached its published counts on them.

Questions, images, their order, prompts, preprocessing and precision all move single pairs; nine counts that agree, or
nearly, leave little room for a difference. The published runs differ among themselves: MMVP's table is not what its own
script gives (tsb0601/MMVP, issue 5). So what is found is held against every run, graded by the nearest one that scored
the same thing, and recorded beside the data, by their hash.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from un2clip.config import read_yaml
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import mmvp_vlm
from un2clip.evaluation.calibration import Calibration, Grade, grades
from un2clip.evaluation.readers import data_sha256
from un2clip.models.clip import encoder_sha256, load_clip

TABLE = "the table of the MMVP repository"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one released model reached in one published run: type -> pairs it had right.

    Attributes:
        plain: whether the class token's embedding was scored, as here; only then can it calibrate.
    """

    source: str
    right: Mapping[str, int]
    plain: bool = True


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published runs of one released model, the table's first; of `pairs` pairs of each type.

    Attributes:
        close: so many pairs apart over all types are still called the published number.
        models: so many models must miss before the pairs are given up.
    """

    model: str
    pairs: int
    close: int
    models: int
    runs: tuple[Run, ...]


def published(model: str) -> Published:
    """The published counts of a released model, from mmvp_vlm.yaml of this package.

    Raises:
        UserError: nothing is known of it; lists the models.
    """
    table: dict[str, Any] = read_yaml(files("un2clip.evaluation") / "mmvp_vlm.yaml")
    if model not in table["models"]:
        raise UserError(f"no published counts of {model!r}; there are those of {', '.join(table['models'])}")
    known, pairs, types = table["models"][model], table["pairs_per_type"], table["types"]
    counts = [count_of(value, pairs) for value in known["percent"]]
    runs = [Run(source=TABLE, right=dict(zip(types, counts, strict=True)))]
    runs += [Run(**run | {"right": dict(zip(types, run["right"], strict=True))}) for run in known.get("runs", ())]
    return Published(
        model=model, pairs=pairs, close=table["close_pairs"], models=table["models_to_fail"], runs=tuple(runs)
    )


def count_of(percent: float, pairs: int) -> int:
    """The count that was printed as a percentage with one decimal.

    Raises:
        ValueError: there is none, so the number was not measured on so many pairs.
    """
    count = round(percent * pairs / 100)
    if abs(100 * count / pairs - percent) > 0.05 + 1e-9:
        raise ValueError(f"{percent} % is no whole number of {pairs} pairs")
    return count


def calibrate(known: Published, *, data: Path, clip: Path, device: str, batch_size: int) -> Calibration:
    """Score a released model on the pairs, and record beside the data how near it came to its published counts.

    Args:
        known: what it should reach.
        data: folder in MMVP_VLM's layout; the record is DATA.calibration.MODEL.json.
        clip: CLIP folder of the model, untouched.
        batch_size: images at once.

    Raises:
        UserError: it is too far from every run, and the record says that it did not pass; or the number of pairs is
            another one, and nothing is recorded: these are other pairs, such as the laptop world's, inside of an
            output of DVC's.
    """
    items = mmvp_vlm.run(load_clip(clip, pick_device(device)), data, batch_size=batch_size).items
    types = [item.type.replace("_", " ") for item in items]
    pairs = Counter(types)
    hits = Counter(name for name, item in zip(types, items, strict=True) if item.value)
    right = {name: hits[name] for name in pairs}
    if others := _differences("pairs", pairs, dict.fromkeys(known.runs[0].right, known.pairs)):
        raise UserError(f"{data} holds other pairs than MMVP-VLM as published: {'; '.join(others)}")
    apart = {run.source: sum(abs(right[name] - run.right[name]) for name in right) for run in known.runs}
    nearest = min((run for run in known.runs if run.plain), key=lambda run: apart[run.source])
    distance = apart[nearest.source]
    grade: Grade = "exact" if distance == 0 else "close" if distance <= known.close else "none"
    record = Calibration(
        model=known.model,
        data_sha256=data_sha256(data),
        encoder_sha256=encoder_sha256(clip),
        right=right,
        published=dict(nearest.right),
        run=nearest.source,
        apart=apart,
        grade=grade,
        passed=grade != "none",
    )
    path = record.save(data)
    if not record.passed:
        raise UserError(
            f"{data} with {known.model} is not MMVP-VLM as published: {'; '.join(_by_type(record))}; {_apart(record)}. "
            f"{_what_next(known, data)}; docs/reproduce.md lists what usually differs; recorded in {path}"
        )
    said = (
        "as published in every type" if grade == "exact" else f"{distance} pairs apart: {'; '.join(_by_type(record))}"
    )
    print(f"{known.model}: {sum(right.values())} of {len(items)} pairs, {said}; {_apart(record)}; recorded in {path}")
    return record


def _by_type(record: Calibration) -> list[str]:
    return _differences("right", record.right, record.published)


def _apart(record: Calibration) -> str:
    """The distance from each published run, in words."""
    return "pairs apart: " + ", ".join(f"{pairs} from {source}" for source, pairs in record.apart.items())


def _what_next(known: Published, data: Path) -> str:
    """What a failure means beside the other models that were measured on the same data."""
    found = grades(data)
    if passed := [model for model, grade in found.items() if grade != "none"]:
        return f"{', '.join(passed)} did pass on these data, so look at the weights of this model"
    if len(found) < known.models:
        return f"measure other models, {known.models} in all, before giving these data up: one may be at fault itself"
    return f"none of {', '.join(found)} comes near, so it is the data or the evaluation"


def _differences(what: str, found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """What was found and what was published, for each type that differs."""
    return [
        f"{name} {found.get(name, 0)} {what}, published {published.get(name, 0)}"
        for name in {**published, **found}
        if found.get(name) != published.get(name)
    ]
