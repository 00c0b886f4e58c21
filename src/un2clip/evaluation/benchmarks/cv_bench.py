"""CV-Bench (arXiv 2406.16860): counting, relations, depth and distance, two to six options each.

How the number misleads: it is a mean of means. ADE20K and COCO weigh alike within 2D, and 2D as much as 3D, so a
question of one source moves it more than one of another; papers print the three sources in columns of their own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.answers import letter
from un2clip.evaluation.mllm.questions import BY_LETTER, Question, judge, lettered
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.crossed import MeanOfGroups
from un2clip.evidence.items import Item, by_type
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "the set's own prompt and LLaVA-1.5's instruction by letter; the letter or the text of an option"
COLUMNS = ("idx", "type", "source", "prompt", "choices", "answer")


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question whose option is named; types are dimension and source, samples are photographs.

    Beside the outcomes, the result has the table's columns.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: letter(answer, question.options),
        unit="% by source",
        protocol=PROTOCOL,
        columns=columns,
    )


def columns(items: Sequence[Item]) -> dict[str, float]:
    """Accuracies in %: each source, 2D (mean of its two), 3D, and all (mean of 2D and 3D)."""
    found = {f"CV-{name}": score_of(each, "% by source") for name, each in by_type(items).items()}
    flat = [item for item in items if item.type.startswith("2D")]
    mean = MeanOfGroups("2D", "3D")
    if flat:
        found["CV-2D"] = 100 * mean.score(flat)
    if solid := [item for item in items if item.type.startswith("3D")]:
        found["CV-3D"] = 100 * mean.score(solid)
    return found | {"CV-Bench": 100 * mean.score(items)}


def read(folder: Path) -> list[Question]:
    """Every question of the files; a UserError names the row that is not as it must be.

    Args:
        folder: the hub's test_2d.parquet and test_3d.parquet, or test.parquet of its older revisions.
    """
    files = find(folder, "test*.parquet", "**/*.parquet")
    return make_questions(read_rows(files, COLUMNS, pictures=("image",)), _question)


def _question(row: Row) -> Iterator[Question]:
    kind, source = row.text("type"), row.text("source")
    if kind not in ("2D", "3D"):
        raise ValueError(f"type must be 2D or 3D, got {kind!r}")
    photograph = row.values.get("source_filename")
    number = f"{kind} {row.whole('idx')}"
    yield Question(
        id=f"{source} {photograph}@{number}" if photograph else number,
        type=f"{kind} {source}",
        text=row.text("prompt") + BY_LETTER,
        picture=row.picture(),
        options=lettered(row.values["choices"]),
        expected=row.text("answer").strip("() ").upper(),
    )
