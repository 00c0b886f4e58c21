"""Calibrate, then claim: pairs are called MMVP-VLM once a released model has reached its published counts on them.

Questions, images, their order, prompts, preprocessing and precision all move single pairs; nine counts that agree to
the pair leave little room for a difference. What passed is recorded beside the data, by their hash.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import mmvp_vlm
from un2clip.evaluation.calibration import Calibration
from un2clip.evaluation.readers import data_sha256
from un2clip.models.clip import encoder_sha256, load_clip


@dataclass(frozen=True, kw_only=True)
class Published:
    """What one released model reached: of `pairs` pairs of each type, how many it had right."""

    model: str
    pairs: int
    right: Mapping[str, int]


def published(model: str) -> Published:
    """The published counts of a released model, from mmvp_vlm.yaml of this package.

    Raises:
        UserError: nothing is known of it; lists the models.
    """
    table: dict[str, Any] = yaml.safe_load((files("un2clip.evaluation") / "mmvp_vlm.yaml").read_text())
    if model not in table["models"]:
        raise UserError(f"no published counts of {model!r}; there are those of {', '.join(table['models'])}")
    percent, pairs = table["models"][model]["percent"], table["pairs_per_type"]
    counts = [count_of(value, pairs) for value in percent]
    return Published(model=model, pairs=pairs, right=dict(zip(table["types"], counts, strict=True)))


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
    """Score a released model on the pairs, record the outcome beside the data, and insist on the published counts.

    Args:
        known: what it must reach.
        data: folder in MMVP_VLM's layout; the record is DATA.calibration.MODEL.json.
        clip: CLIP folder of the model, untouched.
        batch_size: images at once.

    Raises:
        UserError: a count differs, and the record says that it did not pass; or the number of pairs does, and nothing
            is recorded: these are other pairs, such as the laptop world's, inside of an output of DVC's.
    """
    items = mmvp_vlm.run(load_clip(clip, pick_device(device)), data, batch_size=batch_size).items
    types = [item.type.replace("_", " ") for item in items]
    pairs = Counter(types)
    hits = Counter(name for name, item in zip(types, items, strict=True) if item.value)
    right = {name: hits[name] for name in pairs}
    if others := _differences("pairs", pairs, dict.fromkeys(known.right, known.pairs)):
        raise UserError(f"{data} holds other pairs than MMVP-VLM as published: {'; '.join(others)}")
    wrong = _differences("right", right, known.right)
    record = Calibration(
        model=known.model,
        data_sha256=data_sha256(data),
        encoder_sha256=encoder_sha256(clip),
        right=right,
        published=dict(known.right),
        passed=not wrong,
    )
    path = record.save(data)
    if wrong:
        total = f"{sum(right.values())} right of {len(items)}, published {sum(known.right.values())}"
        raise UserError(
            f"{data} with {known.model} is not MMVP-VLM as published: {'; '.join(wrong)}; in all {total}. "
            f"docs/reproduce.md lists what usually differs; recorded in {path}"
        )
    print(f"{known.model}: {sum(right.values())} of {len(items)} pairs, as published in every type; recorded in {path}")
    return record


def _differences(what: str, found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """What was found and what was published, for each type that differs."""
    return [
        f"{name} {found.get(name, 0)} {what}, published {published.get(name, 0)}"
        for name in {**published, **found}
        if found.get(name) != published.get(name)
    ]
