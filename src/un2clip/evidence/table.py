"""The report's table: in the shell, and as plain numbers."""

from collections.abc import Sequence
from typing import Any

from un2clip.errors import shown
from un2clip.evidence.report import LONGEST, Comparison, changed, interval, number, p_value
from un2clip.evidence.units import get_unit

WIDTH = 100  # columns of what is printed into a file or a pipe


def print_table(
    comparisons: Sequence[Comparison], *, method: str, confidence: float, power: float, types: bool = True
) -> None:
    """Print the before/after table on stdout, with a row for each type or without, and what each benchmark can show."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(  # without lines between columns, and a space instead, it fits into WIDTH
        title=Text(f"reference and {shown(method)}"), title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, padding=0,
    )  # fmt: skip
    table.add_column("benchmark", overflow="fold")
    for name in ("n", "reference", "tuned", "difference", f"{100 * confidence:g} % interval", "changed", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reading", no_wrap=True)
    for comparison in comparisons:
        listed = comparison.types if types and len(comparison.types) <= LONGEST else ()
        for row in (comparison.whole, *listed):
            whole, unit = row is comparison.whole, comparison.unit
            table.add_row(
                Text(f"{shown(comparison.benchmark)} ({unit})" if whole else f"  {shown(row.type)}"),
                str(row.difference.n),
                number(row.reference, unit),
                number(row.tuned, unit),
                number(row.difference.mean, unit, signed=True),
                interval(row.difference, unit),
                changed(row),
                p_value(row.discordant.p_value) if row.discordant else "",
                row.reading,
                style="bold" if whole else "",
            )
        if types:
            table.add_section()
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    seen = [
        f"{shown(each.benchmark)} {number(each.whole.smallest, each.unit)} {get_unit(each.unit).change}"
        for each in comparisons
        if each.whole.smallest is not None
    ]
    if seen:
        print(f"Smallest true change that leaves the noise in {100 * power:g} of 100 cases: {', '.join(seen)}.")


def table_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The report's table as plain numbers: a row for each benchmark and each of its types."""
    return [
        {
            "benchmark": comparison.benchmark,
            "type": row.type,
            "unit": comparison.unit,
            "n": row.difference.n,
            "reference": row.reference,
            "tuned": row.tuned,
            "difference": row.difference.mean,
            "low": row.difference.low,
            "high": row.difference.high,
            "changed": changed(row),
            "p": row.discordant.p_value if row.discordant else None,
            "reading": row.reading,
        }
        for comparison in comparisons
        for row in (comparison.whole, *comparison.types)
    ]
