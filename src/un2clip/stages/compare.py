"""compare: one report of what changed, reference against tuned, with the interval of every difference."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from un2clip import tracking
from un2clip.evaluation.standing import STANDING
from un2clip.evidence.assistants import print_assistants
from un2clip.evidence.languages import collect_asked, over_seeds
from un2clip.evidence.lineage import HISTORY, read_history, read_lineage, tuned_pairs
from un2clip.evidence.precision import held_in_both
from un2clip.evidence.report import PAGE, compare_scores, render
from un2clip.evidence.table import print_table, table_rows
from un2clip.files.texts import read_text


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Section `compare` of params.yaml.

    Attributes:
        confidence: of every interval, between 0 and 1.
        resamples: bootstrap resamples of the paired differences.
        power: share of cases in which the smallest gain that a benchmark is said to show is shown.
    """

    confidence: float
    resamples: int
    power: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"confidence must be at least 0.5 and below 1, got {self.confidence}")
        if not 100 <= self.resamples <= 10_000_000:  # beyond it a bound gains no digit, and an hour is lost
            raise ValueError(f"resamples must be from 100 to 10 million, got {self.resamples}")
        if not 0.5 <= self.power < 1.0:
            raise ValueError(f"power must be at least 0.5 and below 1, got {self.power}")


def compare(
    params: Compare, *, seed: int, scores: list[Path], encoder: Path, reconstructions: Path, report: Path
) -> None:
    """Write report/index.html (self-contained), report.json and metrics.json, and print the table.

    Args:
        params: how intervals are made.
        seed: of the bootstrap.
        scores: folders with the scores files of both encoders, of their assistants, or of both, and perhaps plots. Of
            those in bf16 it is said how many items differ from fp32, where there are some in fp32 too.
        encoder: the tuned checkpoint: its lineage and its training history.
        reconstructions: folder of pictures.
        report: output folder.

    Raises:
        UserError: scores are missing, come from another encoder, or cannot be compared.
    """
    lineage = read_lineage(encoder)
    encoders = {"reference": lineage["parents"]["clip"], "tuned": lineage["encoder_sha256"]}
    assistants = [
        over_seeds(pairs, confidence=params.confidence, resamples=params.resamples, seed=seed)
        for pairs in collect_asked(scores, encoders).values()
    ]
    comparisons = [
        compare_scores(*pair, confidence=params.confidence, resamples=params.resamples, seed=seed, power=params.power)
        for pair in tuned_pairs(scores, lineage, needed=not assistants)
    ]
    precisions = list(held_in_both(scores))
    report.mkdir(parents=True, exist_ok=True)
    content = {
        "method": lineage["method"],
        "encoder_sha256": lineage["encoder_sha256"],
        "confidence": params.confidence,
        "power": params.power,
        "resamples": params.resamples,
        "seed": seed,
        "benchmarks": [comparison.as_json() for comparison in comparisons],
        "assistants": [dataclasses.asdict(each) for each in assistants],
        "precisions": [dataclasses.asdict(each) for each in precisions],
        "lineage": lineage,
    }
    (report / "report.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    metrics = {
        each.benchmark: {
            "reference": each.whole.reference,
            "tuned": each.whole.tuned,
            "difference": each.whole.difference.mean,
        }
        for each in comparisons
    } | {
        f"{each.benchmark} (assistants)": {
            "reference": each.reference,
            "tuned": each.tuned,
            "difference": each.difference.mean,
        }
        for each in assistants
    }
    (report / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")  # for `dvc exp show`
    plots = sorted(path for folder in scores for path in folder.rglob("*.png"))
    page = render(
        comparisons,
        lineage=lineage,
        confidence=params.confidence,
        power=params.power,
        history=_history(encoder),
        plots=plots,
        grids=sorted(reconstructions.glob("*.png")),
        assistants=assistants,
        standings=[
            *(read_text(path).strip() for folder in scores for path in sorted(folder.rglob(STANDING))),
            *map(str, precisions),
        ],
    )
    (report / PAGE).write_text(page, encoding="utf-8")
    tracking.log_table("comparison.json", table_rows(comparisons))
    if comparisons:
        print_table(comparisons, method=lineage["method"], confidence=params.confidence, power=params.power)
    print_assistants(assistants, confidence=params.confidence)
    for each in precisions:
        print(each)


def _history(encoder: Path) -> list[dict[str, float]]:
    """The training history, or nothing where the encoder was made without one."""
    path = encoder / HISTORY
    return read_history(path) if path.is_file() else []
