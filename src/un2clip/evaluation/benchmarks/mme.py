"""MME (arXiv 2306.13394): fourteen subtasks of two yes/no questions an image, ten of perception and four of cognition.

How the number misleads: it is no percentage. A subtask has 100 points for the questions and 100 for the images with
both questions right; tables print the ten of perception (2000 at most) and the four of cognition (800) as two sums,
and a subtask of 20 images weighs as much as one of 200.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.questions import BY_WORD, YES_NO, Question, judge, yes_or_no
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.items import Item, by_type
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "LLaVA-1.5's instruction by word for the set's own; MME's rule: yes or no within the first four letters"
COLUMNS = ("question_id", "question", "answer", "category")
OWN_INSTRUCTION = " Please answer yes or no."
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question answered rightly; types are the subtasks, samples are images.

    Beside the outcomes, the result has the points of each subtask and of both parts.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: understand(answer),
        unit="MME",
        protocol=PROTOCOL,
        columns=columns,
    )


def understand(answer: str) -> str:
    """MME's rule: in lower case without full stops, "yes" within the first four letters, or else "no"."""
    head = answer.lower().strip().replace(".", "")[:4]
    return "Yes" if "yes" in head else "No" if "no" in head else ""


def columns(items: Sequence[Item]) -> dict[str, float]:
    """Points: of perception (2000 at most), of cognition (800), of each subtask (200)."""
    subtasks = {name: score_of(of_type, "MME") for name, of_type in by_type(items).items()}
    sums = {
        f"MME {part}": sum(subtasks[name] for name in names if name in subtasks)
        for part, names in (("perception", PERCEPTION), ("cognition", COGNITION))
        if any(name in subtasks for name in names)
    }
    return sums | {f"MME {name}": points for name, points in subtasks.items()}


def read(folder: Path) -> list[Question]:
    """Every question of the files.

    Args:
        folder: parquet files as lmms-lab has them on the hub.

    Raises:
        UserError: a row is not as it must be, or an image has not just two questions.
    """
    rows = read_rows(find(folder, "data/*.parquet", "**/*.parquet"), COLUMNS, ("image",))
    seen: dict[str, int] = {}
    questions = make_questions(rows, lambda row: _question(row, seen))
    if odd := [image for image, count in seen.items() if count != 2]:
        raise UserError(f"{folder}: {len(odd)} images have not just two questions, such as {odd[0]}")
    return questions


def _question(row: Row, seen: dict[str, int]) -> Iterator[Question]:
    subtask = row.text("category")
    if subtask not in PERCEPTION + COGNITION:
        raise ValueError(f"the category must be one of {', '.join(PERCEPTION + COGNITION)}, got {subtask!r}")
    image = f"{subtask} {row.text('question_id')}"
    seen[image] = seen.get(image, 0) + 1
    yield Question(
        id=f"{image}@{seen[image]}",
        type=subtask,
        text=row.text("question").replace(OWN_INSTRUCTION, "") + BY_WORD,
        picture=row.picture(),
        options=YES_NO,
        expected=yes_or_no(row.text("answer")),
    )
