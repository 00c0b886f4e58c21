"""The report's contents: rows of differences with their intervals, the page, the plot."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from un2clip.config import flatten, read_record
from un2clip.evidence.items import Item, by_type
from un2clip.evidence.languages import OverSeeds, in_words
from un2clip.evidence.lineage import Lineage
from un2clip.evidence.power import smallest_shown
from un2clip.evidence.precision import InBoth
from un2clip.evidence.scores import Scores, score_of
from un2clip.evidence.statistics import Difference, Discordant, of_right_or_wrong, paired_differences
from un2clip.evidence.units import UNITS, get_unit

SIGN = {"better": "▲", "worse": "▼", "noise": "≈", "unknown": ""}
#: Stands on the page until the gate has judged; `verdict.decided` puts the verdict there.
UNDECIDED = markupsafe.Markup(
    '<p class="soft">Not judged yet: the page that promote writes beside decision.json says if it was promoted.</p>'
)
PAGE = "index.html"
LONGEST = 12  # a longer list of types is left out in the shell and folded on the page


@dataclass(frozen=True, kw_only=True)
class Row:
    """One type of a benchmark, or all of it: scores and their difference in the benchmark's unit.

    `reading` is "better", "worse", "noise" where the interval holds 0, or "unknown" where there is none. `discordant`
    and `one_item`, what one item more or less is worth, are None where items are not right or wrong. `smallest` is the
    smallest true change that an interval excludes 0 for in a share `power` of cases, given how many samples changed
    here; None where there is no interval, or no change is large enough.
    """

    type: str
    reference: float
    tuned: float
    difference: Difference
    discordant: Discordant | None
    one_item: float | None
    reading: str
    smallest: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark: `whole` over all items, `types` in the order of the data (none when there is only one)."""

    benchmark: str
    unit: str
    protocol: str
    data_sha256: str
    reference_sha256: str
    whole: Row
    types: tuple[Row, ...]

    def __post_init__(self) -> None:
        get_unit(self.unit)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def reach(self) -> float:
        """The largest distance from 0 that any interval of this benchmark reaches: the scale of its drawing."""
        differences = [row.difference for row in (self.whole, *self.types)]
        bounds = [bound for each in differences for bound in (each.low, each.high)]
        return max((abs(bound) for bound in bounds if bound is not None), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """report.json: every comparison of one tuned encoder, its lineage, how the intervals were made, and assistants.

    `precisions` is what differs between fp32 and bf16, where there are scores in both.
    """

    method: str
    encoder_sha256: str
    confidence: float
    power: float
    resamples: int
    seed: int
    benchmarks: tuple[Comparison, ...]
    lineage: Lineage
    assistants: tuple[OverSeeds, ...] = ()
    precisions: tuple[InBoth, ...] = ()


def read_report(path: Path) -> Report:
    """Read a report.json; a UserError says what is wrong with it."""
    return read_record(Report, path, "compare")


def compare_scores(
    reference: Scores, tuned: Scores, *, confidence: float, resamples: int, seed: int, power: float
) -> Comparison:
    """Compare two encoders on one benchmark, over all items and for each type; a number of the whole set as it is."""
    unit = get_unit(tuned.unit)
    if unit.set_level:
        return _comparison(reference, tuned, _set_row(reference, tuned), ())
    whole, of_types = paired_differences(
        reference.items, tuned.items, unit=unit.name, confidence=confidence, resamples=resamples, seed=seed
    )
    before, after = by_type(reference.items), by_type(tuned.items)

    def row(name: str, before: Sequence[Item], after: Sequence[Item], difference: Difference) -> Row:
        good = (difference.mean < 0) == unit.lower_is_better
        pairs = of_right_or_wrong(before, after, unit.name)
        smallest = smallest_shown(
            difference, unit.name, right_or_wrong=bool(pairs), bound=0.0, confidence=confidence, power=power
        )
        return Row(
            type=name,
            reference=score_of(before, unit.name),
            tuned=score_of(after, unit.name),
            difference=difference,
            discordant=pairs,
            one_item=unit.scale / len(before) if unit.right_or_wrong else None,
            reading="noise" if difference.is_noise else "better" if good else "worse",
            smallest=smallest if math.isfinite(smallest) else None,
        )

    types = [row(name, before[name], after[name], difference) for name, difference in of_types.items()]
    return _comparison(
        reference, tuned, row("all", reference.items, tuned.items, whole), tuple(types) if len(types) > 1 else ()
    )


def _set_row(reference: Scores, tuned: Scores) -> Row:
    """The row of a number of the whole set, which is one sample."""
    change = tuned.score - reference.score
    return Row(
        type="all",
        reference=reference.score,
        tuned=tuned.score,
        difference=Difference(mean=change, low=None, high=None, n=1, changed=int(change != 0.0)),
        discordant=None,
        one_item=None,
        reading="unknown",
    )


def _comparison(reference: Scores, tuned: Scores, whole: Row, types: tuple[Row, ...]) -> Comparison:
    return Comparison(
        benchmark=tuned.benchmark,
        unit=tuned.unit,
        protocol=tuned.protocol,
        data_sha256=tuned.data_sha256,
        reference_sha256=reference.encoder_sha256,
        whole=whole,
        types=types,
    )


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """A score or a difference as text, with the unit's decimals."""
    text = f"{value:{'+' if signed else ''}.{get_unit(unit).digits}f}"
    return text if float(text) else text.lstrip("+-")


def interval(difference: Difference, unit: str) -> str:
    """The interval as text."""
    if difference.low is None or difference.high is None:
        return "none"
    return f"{number(difference.low, unit, signed=True)} to {number(difference.high, unit, signed=True)}"


def changes(comparisons: Sequence[Comparison]) -> str:
    """What changed, as a sentence or two: `Better: mmvp_vlm (+4.1 points). Inside the noise: zeroshot.`"""
    words = {"better": "Better", "worse": "Worse", "noise": "Inside the noise", "unknown": "Without an interval"}
    found: dict[str, list[str]] = {reading: [] for reading in words}
    for each in comparisons:
        gain = f"{number(each.whole.difference.mean, each.unit, signed=True)} {get_unit(each.unit).change}"
        found[each.whole.reading].append(each.benchmark + f" ({gain})" * (each.whole.reading != "noise"))
    return " ".join(f"{words[reading]}: {', '.join(names)}." for reading, names in found.items() if names)


def for_whom(comparisons: Sequence[Comparison]) -> str:
    """Whom a change of encoder concerns, as sentences; with the score of an old index, where one was measured."""
    index = [each.benchmark for each in comparisons if each.benchmark.endswith("-index")]
    old = f"; what an index of old ones still finds is {', '.join(index)}" if index else ""
    return (
        "Who keeps text embeddings can keep them: the text tower is the reference's. Image embeddings are others, and "
        f"have to be made anew{old}."
    )


def changed(row: Row) -> str:
    """How many samples changed: gained and lost where that is known, as `+12 -5`."""
    return f"+{row.discordant.gained} -{row.discordant.lost}" if row.discordant else str(row.difference.changed)


def p_value(value: float) -> str:
    """Two places, three where it is small."""
    return "<0.001" if value < 0.001 else f"{value:.{3 if value < 0.1 else 2}f}"


def render(
    comparisons: Sequence[Comparison],
    *,
    lineage: Mapping[str, Any],
    confidence: float,
    power: float,
    history: Sequence[Mapping[str, float]],
    plots: Sequence[Path],
    grids: Sequence[Path],
    assistants: Sequence[OverSeeds] = (),
    standings: Sequence[str] = (),
) -> str:
    """The page: every picture inside it, no script, nothing fetched; the same inputs give the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("un2clip.evidence", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "changed": changed,
        "p_value": p_value,
        "in_words": in_words,
    }
    return environment.get_template("report.html.j2").render(
        comparisons=comparisons,
        assistants=assistants,
        standings=standings,
        changes=changes(comparisons),
        for_whom=for_whom(comparisons),
        undecided=UNDECIDED,
        lineage=lineage,
        settings=flatten(lineage["params"]),
        percent=f"{100 * confidence:g}",
        power=f"{100 * power:g}",
        sign=SIGN,
        units=UNITS,
        longest=LONGEST,
        training=data_uri(plot_history(history), "svg+xml") if history else None,
        plots=[data_uri(path.read_bytes(), "png") for path in plots],
        grids=[data_uri(path.read_bytes(), "png") for path in grids],
    )


def plot_history(history: Sequence[Mapping[str, float]]) -> bytes:
    """The training curves as SVG, one panel a quantity, over steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(name for point in history for name in point) if name != "step"]
    columns = 2 if len(names) > 1 else 1
    rows = math.ceil(len(names) / columns)
    with rc_context({"svg.hashsalt": "un2clip", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.0, 2.1 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for axis, name in zip(axes, names, strict=False):
            points = [(point["step"], point[name]) for point in history if name in point]  # some are not of every step
            axis.plot(*zip(*points, strict=True), color="#2563a8", linewidth=1.2, marker="." if len(points) < 9 else "")
            axis.set_title(name.replace("_", " "), loc="left", fontsize=9)
            axis.grid(alpha=0.25, linewidth=0.5)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        figure.supxlabel("step", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
