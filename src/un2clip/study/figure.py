"""The figure of a study: what each method does to detail, and what it costs in language."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from un2clip.evidence.units import get_unit

MARKERS = "osD^vP*Xhd"


def plot_changes(summary: Sequence[Mapping[str, Any]], x: str, y: str) -> bytes:
    """SVG: change of benchmark `y` over change of benchmark `x`, a point a method; the reference is the origin.

    Args:
        summary: of seeds.py; bars are its t intervals over the seeds. `method@steps` is left out. The SVG's points
            have their method as id.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = {(line["benchmark"], line["method"]): line for line in summary}
    both = [method for _, method in lines if {(x, method), (y, method)} <= lines.keys()]
    methods = dict.fromkeys(method for method in both if "@" not in method)
    with rc_context(
        {
            "svg.hashsalt": "un2clip", "svg.fonttype": "none", "font.size": 9,
            "axes.spines.top": False, "axes.spines.right": False,
        }
    ):  # fmt: skip
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="black", linewidth=0.6)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.plot(0, 0, "+", color="black", markersize=12, label="reference", gid="reference")
        for i, method in enumerate(methods):
            across, up = lines[x, method], lines[y, method]
            drawn = axes.errorbar(
                across["mean"], up["mean"], xerr=_bar(across), yerr=_bar(up), label=method, color=f"C{i % 10}",
                marker=MARKERS[i % len(MARKERS)], markersize=5, linestyle="none", linewidth=1, capsize=2,
            )  # fmt: skip
            drawn.lines[0].set_gid(method)
        axes.set(xlabel=_label(x, lines), ylabel=_label(y, lines))
        axes.grid(alpha=0.25, linewidth=0.5)
        figure.legend(loc="outside right upper", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _label(benchmark: str, lines: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    units = {line["unit"] for (name, _), line in lines.items() if name == benchmark}
    return f"change of {benchmark}, {get_unit(units.pop()).change}" if units else f"change of {benchmark}"


def _bar(line: Mapping[str, Any]) -> list[list[float]] | None:
    if line["low"] is None:
        return None
    return [[line["mean"] - line["low"]], [line["high"] - line["mean"]]]
