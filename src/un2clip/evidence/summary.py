"""What a finished run says, for people: the table, the gate's sentences, where the pictures lie, how to go on."""

from pathlib import Path

from un2clip.config import build
from un2clip.evidence.lineage import DECISION, REGISTRY, read_json
from un2clip.evidence.report import Comparison, print_table

NEXT = """
report          {report}/index.html
pictures        {pictures}
encoder         {encoder} (open_clip loads it: local-dir:{encoder})
registry        mlflow ui --backend-store-uri sqlite:///mlflow.db   (then /#/models/un2clip)
get it back     un2clip export --alias challenger --to my-encoder"""


def show(*, report: Path, decision: Path, reconstructions: Path, scores: Path, encoder: Path) -> None:
    """Print the before/after table of a finished run, the gate's decision, and the paths of what it made.

    Raises:
        UserError: the run is not finished.
    """
    made = read_json(report / "report.json", ("method", "confidence", "benchmarks"), "compare")
    decided = read_json(decision / DECISION, ("passed", "rules"), "promote")
    done = read_json(decision / REGISTRY, ("outcome",), "promote")
    comparisons = [build(Comparison, each, "report") for each in made["benchmarks"]]
    print_table(comparisons, method=made["method"], confidence=made["confidence"])
    for sentence in [*(finding["sentence"] for finding in decided["rules"]), *decided.get("objections", ())]:
        print(sentence)
    print(f"The gate {'passed' if decided['passed'] else 'refused'}. {done['outcome']}")
    pictures = ", ".join(map(str, [*sorted(reconstructions.glob("*.png")), *sorted(scores.glob("*/*.png"))]))
    print(NEXT.format(report=report, pictures=pictures, encoder=encoder))
