"""A scores file: what one encoder reached on one benchmark, with every item's outcome.

It describes itself (method, benchmark, n, data hash, encoder hash), so that nothing has to be parsed out
of a path, and it keeps the items, so that two encoders can be compared pair by pair.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from un2clip.errors import UserError

Unit = Literal["%", "mse", "mIoU"]
SCALE: dict[Unit, float] = {"%": 100.0, "mse": 1.0, "mIoU": 100.0}
Role = Literal["reference", "tuned"]
ROLES: tuple[Role, ...] = ("reference", "tuned")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One outcome: `value` out of `of`.

    In % the value is 0 or 1 out of 1, in mse a mean squared error. In mIoU it is one class in one image: id
    `image@class`, type the class, value the pixels of the intersection, `of` those of the union, which is not 0.
    An id `sample@part` is one of several outcomes of the same sample, such as an image at several noise levels.
    """

    id: str
    type: str
    value: float
    of: float = 1.0

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
        unit: "%" or "mIoU" (higher is better), or "mse" (lower is better).
        protocol: one line on how it was measured, as far as it moves the number: only equal ones may be compared.
        data_sha256: hash of the benchmark's data: only equal hashes may be compared.
        encoder_sha256: hash of the whole checkpoint's weights.
        items: every outcome, in the order of the data.

    Raises:
        ValueError: an unknown role or unit, a protocol of several lines, two items of one id, or an outcome that
            the unit does not have.
    """

    benchmark: str
    role: Role
    method: str
    unit: Unit
    protocol: str
    data_sha256: str
    encoder_sha256: str
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.unit not in SCALE:
            raise ValueError(f"unit must be one of {', '.join(SCALE)}, got {self.unit!r}")
        if len(self.protocol.splitlines()) > 1:
            raise ValueError(f"protocol must be one line, got {self.protocol!r}")
        if len({item.id for item in self.items}) != self.n:
            raise ValueError("every item must have an id of its own")
        if self.unit == "%" and any(item.value < 0.0 or item.value > 1.0 for item in self.items):
            raise ValueError("outcomes in % must be between 0 and 1")
        if self.unit == "mIoU":
            if broken := [item.id for item in self.items if not 0.0 <= item.value <= item.of < math.inf or not item.of]:
                raise ValueError(f"an intersection must be within a union that is not empty, got item {broken[0]}")
            if broken := [item.id for item in self.items if item.id != f"{item.sample}@{item.type}"]:
                raise ValueError(f"ids in mIoU must be image@class, with no @ in the class, got {broken[0]}")
        elif any(item.of != 1.0 for item in self.items):
            raise ValueError(f"outcomes in {self.unit} are out of 1")

    @property
    def lower_is_better(self) -> bool:
        return self.unit == "mse"

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def score(self) -> float:
        """`score_of` all items."""
        return score_of(self.items, self.unit)

    def per_type(self) -> dict[str, tuple[float, int]]:
        """Score and number of items of each type, in order of first appearance."""
        return {name: (score_of(items, self.unit), len(items)) for name, items in by_type(self.items).items()}

    def summary(self) -> dict[str, Any]:
        """Everything but the items, with what follows from them: n, score, score and n of each type."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "items"}
        per_type = {name: {"score": score, "n": n} for name, (score, n) in self.per_type().items()}
        return fields | {"n": self.n, "score": self.score, "per_type": per_type}

    def save(self, path: Path) -> None:
        """Write JSON: the summary first, then the items."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("id", "type", "value", "of") if self.unit == "mIoU" else ("id", "type", "value")
        content = self.summary() | {"items": [{name: getattr(item, name) for name in names} for item in self.items]}
        path.write_text(json.dumps(content, indent=1) + "\n")


def by_type(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The items of each type, types in order of first appearance."""
    types: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        types[item.type].append(item)
    return dict(types)


def score_of(items: Sequence[Item], unit: Unit) -> float:
    """Sum of values over sum of `of`, in the unit; NaN when there is no item.

    In mIoU it is the mean of this over the types: intersections and unions are summed over the whole set, class by
    class, and a class that is neither in the labels nor predicted does not count (as mmsegmentation's IoUMetric).
    """
    groups = list(by_type(items).values()) if unit == "mIoU" else [items] if items else []
    ratios = [math.fsum(item.value for item in each) / math.fsum(item.of for item in each) for each in groups]
    return math.fsum(ratios) / len(ratios) * SCALE[unit] if ratios else math.nan


def load_scores(path: Path) -> Scores:
    """Read a scores file; the summary in it is computed again from the items.

    Raises:
        UserError: the file is not a scores file, or its summary disagrees with its items.
    """
    try:
        content = json.loads(path.read_text())
        items = tuple(
            Item(id=str(i["id"]), type=str(i["type"]), value=float(i["value"]), of=float(i.get("of", 1.0)))
            for i in content["items"]
        )
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
    if before.protocol != after.protocol:
        return f"they were measured in different ways ({before.protocol!r} and {after.protocol!r})"
    for name in ("benchmark", "unit", "data_sha256", *(() if before.unit == "mIoU" else ("n",))):
        first, second = getattr(before, name), getattr(after, name)
        if first != second:
            return f"{name} differs ({_short(first)} and {_short(second)})"
    if not before.n or not after.n:
        return "there are no items"
    if before.unit == "mIoU":  # which classes have a union in an image depends on the prediction
        if {item.sample for item in before.items} != {item.sample for item in after.items}:
            return "the images differ"
    elif [(item.id, item.type) for item in before.items] != [(item.id, item.type) for item in after.items]:
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
