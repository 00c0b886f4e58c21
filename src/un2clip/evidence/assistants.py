"""The table of what language models make of two encoders, in the shell."""

from collections.abc import Sequence

from un2clip.errors import shown
from un2clip.evidence.languages import OverSeeds, in_words
from un2clip.evidence.report import interval, number
from un2clip.evidence.table import WIDTH


def print_assistants(found: Sequence[OverSeeds], *, confidence: float) -> None:
    """Print a row a benchmark on stdout, and what was shown as a sentence; nothing where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    table = Table(title=Text("assistants: language models that read them"), title_justify="left", header_style="bold")
    table.add_column("benchmark")
    percent = f"{100 * confidence:g} %"
    for name in ("reference", "tuned", "difference", f"{percent} over questions", "spread", f"{percent} over seeds"):
        table.add_column(name, justify="right")
    for each in found:
        unit = each.unit
        table.add_row(
            Text(f"{shown(each.benchmark)} ({unit})"),
            number(each.reference, unit),
            number(each.tuned, unit),
            number(each.difference.mean, unit, signed=True),
            interval(each.difference, unit),
            "unknown" if each.spread is None else number(each.spread, unit),
            over_seeds_as_text(each),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    for each in found:
        print(f"{shown(each.benchmark)}: {in_words(each)}")


def over_seeds_as_text(found: OverSeeds) -> str:
    """The interval over the seeds, as text."""
    if found.low is None or found.high is None:
        return "unknown"
    return f"{number(found.low, found.unit, signed=True)} to {number(found.high, found.unit, signed=True)}"
