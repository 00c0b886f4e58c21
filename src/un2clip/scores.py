"""A scores file: what one encoder reached on one benchmark, with every item's outcome.

It describes itself (method, benchmark, n, data hash, encoder hash), so that nothing has to be parsed out
of a path, and it keeps the items, so that two encoders can be compared pair by pair.
"""

import dataclasses
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from un2clip.config import UserError

Unit = Literal["%", "mse"]
SCALE: dict[Unit, float] = {"%": 100.0, "mse": 1.0}
Role = Literal["reference", "tuned"]
ROLES: tuple[Role, ...] = ("reference", "tuned")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One outcome: `value` is 0 or 1 for a benchmark in %, a mean squared error for a loss.

    An id `sample@part` is one of several outcomes of the same sample, such as an image at several noise levels.
    """

    id: str
    type: str
    value: float

    @property
    def sample(self) -> str:
        """What is drawn as a whole when intervals are made: the id without its part."""
        return self.id.rpartition("@")[0] or self.id


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one encoder reached on one benchmark.

    Attributes:
        benchmark: mmvp_vlm, zeroshot, ... or diffusion_loss.
        role: reference (the untouched encoder) or tuned.
        method: row of the method table that made the encoder; "reference" for the untouched one.
        unit: "%" (higher is better) or "mse" (lower is better).
        data_sha256: hash of the benchmark's data: only equal hashes may be compared.
        encoder_sha256: hash of the whole checkpoint's weights.
        items: every outcome, in the order of the data.

    Raises:
        ValueError: an unknown role or unit, two items of one id, or an outcome outside 0..1 in a benchmark in %.
    """

    benchmark: str
    role: Role
    method: str
    unit: Unit
    data_sha256: str
    encoder_sha256: str
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.unit not in SCALE:
            raise ValueError(f"unit must be one of {', '.join(SCALE)}, got {self.unit!r}")
        if len({item.id for item in self.items}) != self.n:
            raise ValueError("every item must have an id of its own")
        if self.unit == "%" and any(item.value < 0.0 or item.value > 1.0 for item in self.items):
            raise ValueError("outcomes in % must be between 0 and 1")

    @property
    def lower_is_better(self) -> bool:
        return self.unit == "mse"

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def score(self) -> float:
        """Mean over all items, in the unit; NaN when there is none."""
        return _mean([item.value for item in self.items]) * SCALE[self.unit]

    def per_type(self) -> dict[str, tuple[float, int]]:
        """Score and number of items of each type, in order of first appearance."""
        values: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            values[item.type].append(item.value)
        return {name: (_mean(each) * SCALE[self.unit], len(each)) for name, each in values.items()}

    def summary(self) -> dict[str, Any]:
        """Everything but the items, with what follows from them: n, score, score and n of each type."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "items"}
        per_type = {name: {"score": score, "n": n} for name, (score, n) in self.per_type().items()}
        return fields | {"n": self.n, "score": self.score, "per_type": per_type}

    def save(self, path: Path) -> None:
        """Write JSON: the summary first, then the items."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.summary() | {"items": [dataclasses.asdict(item) for item in self.items]}
        path.write_text(json.dumps(content, indent=1) + "\n")


def load_scores(path: Path) -> Scores:
    """Read a scores file; the summary in it is computed again from the items.

    Raises:
        UserError: the file is not a scores file, or its summary disagrees with its items.
    """
    try:
        content = json.loads(path.read_text())
        items = tuple(Item(id=str(i["id"]), type=str(i["type"]), value=float(i["value"])) for i in content["items"])
        fields = {field.name: str(content[field.name]) for field in dataclasses.fields(Scores) if field.name != "items"}
        scores = Scores(**fields, items=items)  # type: ignore[arg-type]
        said = [content["n"], content["score"], *_summary(content["per_type"])]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not a scores file ({reason}); run `evaluate` again") from None
    found = [scores.n, scores.score, *_summary(scores.summary()["per_type"])]
    if len(said) != len(found) or not all(map(_same, said, found)):
        raise UserError(f"{path} was edited by hand: its summary disagrees with its items; run `evaluate` again")
    return scores


def collect_scores(folders: list[Path]) -> dict[str, dict[str, Scores]]:
    """All scores files (reference.json, tuned.json) below the folders: benchmark -> role -> Scores.

    Raises:
        UserError: there is none, one is broken, or two tell the same role on the same benchmark.
    """
    found: dict[str, dict[str, Scores]] = defaultdict(dict)
    names = [f"{role}.json" for role in ROLES]
    for path in sorted(path for folder in folders for path in folder.rglob("*.json") if path.name in names):
        scores = load_scores(path)
        if scores.role in found[scores.benchmark]:
            raise UserError(f"two scores files of {scores.role} on {scores.benchmark}; the second is {path}")
        found[scores.benchmark][scores.role] = scores
    if not found:
        raise UserError(f"no scores files below {', '.join(map(str, folders))}; run `evaluate` first")
    return dict(sorted(found.items()))


def mismatch(before: Scores, after: Scores) -> str | None:
    """Why two scores may not be compared item by item, as half a sentence; None when they may."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in ("benchmark", "unit", "data_sha256", "n")}
    for name, (first, second) in pairs.items():
        if first != second:
            return f"{name} differs ({_short(first)} and {_short(second)})"
    if not before.n:
        return "there are no items"
    if [(item.id, item.type) for item in before.items] != [(item.id, item.type) for item in after.items]:
        return "the items differ"
    for scores in (before, after):
        if broken := [item.id for item in scores.items if not math.isfinite(item.value)]:
            return f"{len(broken)} of {scores.n} outcomes are not finite (first: item {broken[0]} of {scores.method})"
    return None


def _summary(per_type: dict[str, dict[str, float]]) -> list[object]:
    return [part for name, each in per_type.items() for part in (name, each["score"], each["n"])]


def _same(said: object, found: object) -> bool:
    if isinstance(said, int | float) and isinstance(found, int | float):
        return math.isclose(said, found, rel_tol=1e-9) or (math.isnan(said) and math.isnan(found))
    return said == found


def _short(value: object) -> str:
    """The first 12 letters: enough of a hash to tell two apart."""
    return str(value)[:12]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
