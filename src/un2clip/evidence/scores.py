"""A scores file: what one encoder reached on one benchmark, with every item's outcome.

It describes itself (method, benchmark, n, data hash, encoder hash), so that nothing has to be parsed out
of a path, and it keeps the items, so that two encoders can be compared pair by pair.
"""

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from un2clip.errors import UserError, cause
from un2clip.evidence.items import Item, by_type
from un2clip.evidence.units import get_unit
from un2clip.files.texts import read_json

Role = Literal["reference", "tuned"]
ROLES: tuple[Role, ...] = ("reference", "tuned")
#: The end of a protocol whose towers did not compute in fp32.
BF16 = "towers in bf16, the rest in fp32"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one encoder reached on one benchmark.

    Attributes:
        benchmark: mmvp_vlm, zeroshot, ... or diffusion_loss.
        role: reference (the untouched encoder) or tuned.
        method: row of the method table that made the encoder; "reference" for the untouched one.
        unit: a row of UNITS.
        protocol: one line on how it was measured, as far as it moves the number: only equal ones may be compared.
        data_sha256: hash of the benchmark's data: only equal hashes may be compared.
        encoder_sha256: hash of the whole checkpoint's weights.
        items: every outcome, in the order of the data; none in a unit of whole sets.
        number: the score, in a unit of whole sets; elsewhere None, for it follows from the items.

    Raises:
        ValueError: an unknown role or unit, a protocol of several lines, two items of one id, or an outcome that
            the unit does not have.
    """

    benchmark: str
    role: Role
    method: str
    unit: str
    protocol: str
    data_sha256: str
    encoder_sha256: str
    items: tuple[Item, ...]
    number: float | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        unit = get_unit(self.unit)
        if self.benchmark != Path(self.benchmark).name:
            raise ValueError(f"benchmark must be a name that a folder can have, got {self.benchmark!r}")
        if len(self.protocol.splitlines()) > 1:
            raise ValueError(f"protocol must be one line, got {self.protocol!r}")
        if len({item.id for item in self.items}) != self.n:
            raise ValueError("every item must have an id of its own")
        if unit.set_level != (self.number is not None) or (unit.set_level and self.items):
            raise ValueError(f"scores in {unit.name} are {'a number without items' if unit.set_level else 'of items'}")
        for item in self.items:
            if complaint := unit.complaint(item):
                raise ValueError(f"{complaint}, got item {item.id}")
            if not unit.out_of and item.of != 1.0:
                raise ValueError(f"outcomes in {unit.name} are out of 1, got item {item.id}")

    @property
    def lower_is_better(self) -> bool:
        return get_unit(self.unit).lower_is_better

    @property
    def bf16(self) -> bool:
        """Whether the towers computed in bf16."""
        return self.protocol.endswith(BF16)

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def score(self) -> float:
        """`score_of` all items, or the number of the whole set."""
        return score_of(self.items, self.unit) if self.number is None else self.number

    def per_type(self) -> dict[str, tuple[float, int]]:
        """Score and number of items of each type, in order of first appearance."""
        return {name: (score_of(items, self.unit), len(items)) for name, items in by_type(self.items).items()}

    def summary(self) -> dict[str, Any]:
        """Everything but the items, with what follows from them: n, score, score and n of each type."""
        fields = {name: getattr(self, name) for name in DESCRIPTION}
        per_type = {name: {"score": score, "n": n} for name, (score, n) in self.per_type().items()}
        return fields | {"n": self.n, "score": self.score, "per_type": per_type}

    @property
    def sha256(self) -> str:
        """Hash of all that the file says: every outcome, and of which encoder on which data."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write `content` as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._text())

    def _text(self) -> str:
        return json.dumps(self.content(), indent=1) + "\n"

    def content(self) -> dict[str, Any]:
        """What the file says, as plain data: the summary first, then the items."""
        names = ("id", "type", "value", "of") if get_unit(self.unit).out_of else ("id", "type", "value")
        return self.summary() | {"items": [{name: getattr(item, name) for name in names} for item in self.items]}


#: The fields that a scores file has as they are.
DESCRIPTION = tuple(field.name for field in dataclasses.fields(Scores) if field.name not in ("items", "number"))


def score_of(items: Sequence[Item], unit: str) -> float:
    """The score of some items of one encoder in a unit that has items; NaN when there is no item."""
    row = get_unit(unit)
    if row.aggregate is None:
        raise ValueError(f"{row.name} is a number of the whole set, not of items")
    return row.aggregate.score(items) * row.scale if items else math.nan


def load_scores(path: Path) -> Scores:
    """Read a scores file; the summary in it is computed again from the items.

    Raises:
        UserError: the file is not a scores file, or its summary disagrees with its items.
    """
    try:
        content = read_json(path, nan=True)  # the outcome of a model that failed
        items = tuple(map(_item, content["items"]))
        fields: dict[str, Any] = {name: _typed(content[name], str) for name in DESCRIPTION}
        number = float(_typed(content["score"], float, int)) if get_unit(fields["unit"]).set_level else None
        scores = Scores(**fields, items=items, number=number)
        said = [content["n"], content["score"], *_summary(content["per_type"])]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = cause(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} is not a scores file ({why}); run `evaluate` again") from None
    found = [scores.n, scores.score, *_summary(scores.summary()["per_type"])]
    if len(said) != len(found) or not all(map(_same, said, found)):
        raise UserError(f"{path} was edited by hand: its summary disagrees with its items; run `evaluate` again")
    return scores


def _item(content: dict[str, Any]) -> Item:
    value, of = (float(_typed(each, float, int)) for each in (content["value"], content.get("of", 1.0)))
    return Item(id=_typed(content["id"], str), type=_typed(content["type"], str), value=value, of=of)


def _typed(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise TypeError(f"{value!r} is no {types[0].__name__}")
    return value


def collect_scores(folders: list[Path], *, needed: bool = True) -> dict[str, dict[str, Scores]]:
    """All scores files (reference.json, tuned.json) below the folders: benchmark -> role -> Scores.

    Of a benchmark that is there in fp32 and in bf16, those in bf16 only where they are of more roles.

    Raises:
        UserError: there is none where one is needed, or as `load_all`.
    """
    found: dict[str, dict[str, Scores]] = {}
    for (benchmark, _), roles in sorted(load_all(folders).items()):
        if len(roles) > len(found.get(benchmark, {})):
            found[benchmark] = roles
    if needed and not found:
        raise UserError(f"no scores files below {', '.join(map(str, folders))}; run `evaluate` first")
    return found


def load_all(folders: list[Path]) -> dict[tuple[str, bool], dict[str, Scores]]:
    """All scores files below the folders: (benchmark, whether in bf16) -> role -> Scores.

    Raises:
        UserError: one is broken, or two tell the same role on the same benchmark.
    """
    found: dict[tuple[str, bool], dict[str, Scores]] = defaultdict(dict)
    names = [f"{role}.json" for role in ROLES]
    for path in sorted(path for folder in folders for path in folder.rglob("*.json") if path.name in names):
        scores = load_scores(path)
        roles = found[scores.benchmark, scores.bf16]
        if scores.role in roles:
            raise UserError(f"two scores files of {scores.role} on {scores.benchmark}; the second is {path}")
        roles[scores.role] = scores
    return dict(found)


def mismatch(before: Scores, after: Scores) -> str | None:
    """Why two scores may not be compared item by item, as half a sentence; None when they may."""
    if before.protocol != after.protocol:
        return f"they were measured in different ways ({before.protocol!r} and {after.protocol!r})"
    unit = get_unit(before.unit)
    for name in ("benchmark", "unit", "data_sha256", *(("n",) if unit.paired else ())):
        first, second = getattr(before, name), getattr(after, name)
        if first != second:
            return f"{name} differs ({_short(first)} and {_short(second)})"
    if unit.set_level:
        broken = [scores.method for scores in (before, after) if not math.isfinite(scores.score)]
        return f"the number of {broken[0]} is not finite" if broken else None
    if not before.n or not after.n:
        return "there are no items"
    if not unit.paired:
        if {item.sample for item in before.items} != {item.sample for item in after.items}:
            return f"the {unit.counts} differ"
    elif [(item.id, item.type) for item in before.items] != [(item.id, item.type) for item in after.items]:
        return "the items differ"
    if unit.total is not None and (differ := _differing_totals(before, after, unit.total)):
        return f"items are missing or were added: the totals of {len(differ)} {unit.counts} differ (first: {differ[0]})"
    for scores in (before, after):
        if broken := [item.id for item in scores.items if not math.isfinite(item.value)]:
            return f"{len(broken)} of {scores.n} outcomes are not finite (first: item {broken[0]} of {scores.method})"
    return None


def _differing_totals(before: Scores, after: Scores, total: Callable[[Item], float]) -> list[str]:
    """The samples in which two encoders' items add up to different totals (whole numbers, so sums are exact)."""
    sums: dict[str, float] = defaultdict(float)
    for sign, scores in ((1.0, after), (-1.0, before)):
        for item in scores.items:
            sums[item.sample] += sign * total(item)
    return [sample for sample, difference in sums.items() if difference]


def _summary(per_type: dict[str, dict[str, float]]) -> list[object]:
    return [part for name, each in per_type.items() for part in (name, each["score"], each["n"])]


def _same(said: object, found: object) -> bool:
    if isinstance(said, int | float) and isinstance(found, int | float):
        try:
            return math.isclose(said, found, rel_tol=1e-9) or (math.isnan(said) and math.isnan(found))
        except OverflowError:  # a whole number of JSON may have more digits than any float
            return False
    return said == found


def _short(value: object) -> str:
    """The first 12 letters: enough of a hash to tell two apart."""
    return str(value)[:12]
