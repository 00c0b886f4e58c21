"""What a finished run says, for people: the table, the gate's sentences, where the pictures lie, how to go on."""

from dataclasses import dataclass, field
from pathlib import Path

from un2clip.config import read_record
from un2clip.errors import shown
from un2clip.evidence.assistants import print_assistants
from un2clip.evidence.gate import Decision, Finding
from un2clip.evidence.lineage import DECISION, REGISTRY
from un2clip.evidence.report import changes, for_whom, read_report
from un2clip.evidence.table import print_table

NEXT = """
report          {decision}/index.html
pictures        {pictures}
encoder         {encoder} (open_clip loads it: local-dir:{encoder})
registry        mlflow ui --backend-store-uri sqlite:///mlflow.db   (then /#/models/un2clip)
get it back     un2clip export --alias challenger --to my-encoder"""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """decision.json, as far as it is read again: the gate's findings, and what nobody's rule asks about."""

    passed: bool
    rules: tuple[Finding, ...]
    objections: tuple[str, ...] = ()
    looks: int = 1
    champion: dict[str, str | None] = field(default_factory=dict)
    challenger: dict[str, str] = field(default_factory=dict)

    @property
    def who(self) -> str:
        """Whom the challenger had to beat, in words."""
        return self.champion.get("who") or "the champion"

    @property
    def decision(self) -> Decision:
        return Decision(findings=self.rules, objections=self.objections, looks=self.looks)

    def __post_init__(self) -> None:
        if self.passed != self.decision.passed:
            raise ValueError("passed does not follow from its rules and objections")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """registry.json: the number of the version, where there is one, and what happened, in words."""

    version: str | None
    outcome: str


def read_decision(folder: Path) -> tuple[Decided, Registered]:
    """What `promote` decided, and what happened at the registry.

    Raises:
        UserError: a file is absent or broken.
    """
    return read_record(Decided, folder / DECISION, "promote"), read_record(Registered, folder / REGISTRY, "promote")


def show(
    *, report: Path, decision: Path, reconstructions: Path, scores: Path, encoder: Path, types: bool = False
) -> None:
    """Print what changed in a finished run, the gate's decision, and the paths of what it made, on about one screen.

    Args:
        types: print a row for each type of each benchmark too.

    Raises:
        UserError: the run is not finished.
    """
    made, (decided, done) = read_report(report / "report.json"), read_decision(decision)
    if made.benchmarks:
        print(f"{shown(changes(made.benchmarks))}\n{shown(for_whom(made.benchmarks))}")
    print(f"The gate {'passed' if decided.passed else 'refused'}. {shown(done.outcome)}\n")
    print_table(made.benchmarks, method=made.method, confidence=made.confidence, power=made.power, types=types)
    print_assistants(made.assistants, confidence=made.confidence)
    for sentence in decided.decision.sentences:
        print(shown(sentence))
    pictures = ", ".join(map(str, [*sorted(reconstructions.glob("*.png")), *sorted(scores.glob("*/*.png"))]))
    print(NEXT.format(decision=decision, pictures=pictures, encoder=encoder))
