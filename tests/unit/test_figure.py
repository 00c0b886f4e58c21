"""The figure of a study: which points it has, and where."""

import re

import pytest

from un2clip.study.figure import plot_changes

CHANGES = {"un2clip": (-8.0, 0.5), "held": (0.0, 2.0), "other": (-4.0, -1.0), "un2clip@50": (-20.0, 5.0)}


def lines(half: float | None) -> list[dict[str, object]]:
    """What seeds.summary says, as far as it is drawn; `half` an interval."""
    return [
        {"benchmark": name, "unit": unit, "method": method, "mean": mean}
        | {"low": None if half is None else mean - half, "high": None if half is None else mean + half}
        for method, means in CHANGES.items()
        for name, unit, mean in zip("xy", ("%", "dB"), means, strict=True)
    ]


def place(drawn: str, method: str) -> tuple[float, float]:
    found = re.search(rf'<g id="{method}">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn, re.S)
    assert found, method
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("half", [1.0, None])
def test_points_stand_where_the_numbers_say(half) -> None:
    """A point a method, none for another length; distances from the reference in proportion to the changes."""
    drawn = plot_changes(lines(half), "x", "y").decode()
    assert "un2clip@50" not in drawn and "change of x, points<" in drawn and "change of y, dB<" in drawn
    x0, y0 = place(drawn, "reference")
    scale_x, scale_y = (place(drawn, "other")[0] - x0) / -4.0, (place(drawn, "other")[1] - y0) / -1.0
    assert scale_x > 0 > scale_y, "more is to the right and up, and SVG counts downwards"
    for method in ("un2clip", "held"):
        x, y = place(drawn, method)
        assert ((x - x0) / scale_x, (y - y0) / scale_y) == pytest.approx(CHANGES[method], abs=0.01)


def test_bars_are_the_intervals() -> None:
    """Wider intervals, another drawing; the same numbers, the same bytes."""
    narrow, wide = (plot_changes(lines(half), "x", "y") for half in (0.1, 1.0))
    assert narrow != wide and wide == plot_changes(lines(1.0), "x", "y")
