"""GQA (arXiv 1902.09506), testdev balanced: questions of one word or phrase about photographs.

How the number misleads: an answer is right only if it is the very word, so "couch" for "sofa" is wrong, and a model
that says whole sentences has nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.questions import BY_WORD, Picture, Question, judge, picture_file
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "LLaVA-1.5's instruction by word; the answer itself, in lower case and without full stops at its end"


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question answered by the right word; types are the structural ones, samples are photographs.

    Beside the outcomes, the result has the table's column.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: understand(answer),
        unit="%",
        protocol=PROTOCOL,
        columns=lambda items: {"GQA": score_of(items, "%")},
    )


def understand(answer: str) -> str:
    """As LLaVA hands an answer to GQA's own script, which compares the words."""
    return answer.strip().rstrip(".").lower()


def read(folder: Path) -> list[Question]:
    """Every question of the files; a UserError names the row that is not as it must be.

    Args:
        folder: testdev_balanced_instructions/ and testdev_balanced_images/ in parquet as lmms-lab has them on the hub,
            or the original testdev_balanced_questions.json beside images/.
    """
    files = find(folder, "testdev_balanced_instructions/*.parquet", "testdev_balanced_questions.json")
    original = files[0].suffix == ".json"
    rows = read_rows(files, ("key" if original else "id", "imageid", "question", "answer"))
    photographs = {} if original else _photographs(folder)
    return make_questions(rows, lambda row: _question(row, photographs, folder))


def _photographs(folder: Path) -> dict[str, Picture]:
    rows = read_rows(find(folder, "testdev_balanced_images/*.parquet"), ("id",), ("image",))
    return {str(row.values["id"]): row.picture() for row in rows if row.pictures}


def _question(row: Row, photographs: Mapping[str, Picture], folder: Path) -> Iterator[Question]:
    photograph, kinds = row.text("imageid"), row.values.get("types")
    if photographs and photograph not in photographs:
        raise ValueError(f"there is no picture {photograph} in testdev_balanced_images")
    yield Question(
        id=f"{photograph}@{row.text('id' if photographs else 'key')}",
        type=str(kinds.get("structural")) if isinstance(kinds, dict) else "GQA",
        text=row.text("question") + BY_WORD,
        picture=photographs[photograph] if photographs else picture_file(folder, f"images/{photograph}.jpg"),
        options={},
        expected=row.text("answer").lower(),
    )
