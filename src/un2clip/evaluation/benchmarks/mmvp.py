"""MMVP (arXiv 2401.06209): 150 pairs of photographs that CLIP takes for alike, one question of two options a pair.

How the number misleads: a pair counts only if both its questions are right, so chance is 25 %, and one pair is 0.67
points. Four of the published answers are said to be wrong (99, 100, 279, 280: tsb0601/MMVP, issues 14 and 30); tables
until 2025 have them as published, lmms-eval has them corrected, and that is up to 1.3 points. The authors' own script
draws its answers and asks GPT-4 whether they are right; here nothing is drawn and nobody is asked.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.answers import letter
from un2clip.evaluation.mllm.questions import BY_LETTER, Assistant, Question, judge, lettered, lines, picture_file
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "options as lines, LLaVA-1.5's instruction by letter; the letter or the text of an option"
COLUMNS = ("index", "question", "options", "correct_answer")
IMAGES = "MMVP Images"
#: Of the whole set, the rows whose published answers are said to be wrong -> that answer, and a word of their question.
DISPUTED = {99: ("A", "tusk"), 100: ("B", "tusk"), 279: ("A", "sit"), 280: ("B", "sit")}
OTHER = {"A": "B", "B": "A"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `ask.mmvp` of params.yaml says.

    Attributes:
        labels: published | corrected: of the four disputed answers, whatever the files have.
    """

    labels: Literal["published", "corrected"]


def run(assistant: Assistant, folder: Path, *, batch_size: int, options: Options) -> BenchmarkResult:
    """Value 1 for every question whose option is named; a sample is a pair.

    Args:
        folder: Questions.csv and `MMVP Images/1.jpg` ..., as published, or a parquet file of the same columns.
    """
    questions, said = read(folder, options.labels)
    return score(questions, assistant.ask(questions, batch_size=batch_size), said)


def score(questions: Sequence[Question], answers: Sequence[str], labels: str) -> BenchmarkResult:
    """The outcome of every question; `labels` says for the protocol whose answers are right."""
    return judge(
        questions,
        answers,
        lambda answer, question: letter(answer, question.options),
        unit="% of groups",
        protocol=f"{PROTOCOL}; {labels}",
        columns=lambda items: {"MMVP": score_of(items, "% of groups"), "MMVP single": score_of(items, "%")},
    )


def read(folder: Path, labels: str) -> tuple[list[Question], str]:
    """Every question, and whose answers are right, for the protocol.

    Raises:
        UserError: a row or an image is not as it must be, or the rows are no pairs 1 and 2, 3 and 4, ...
    """
    files = find(folder, "Questions.csv", "**/*.parquet")
    pictures = () if files[0].suffix == ".csv" else ("image",)
    questions = make_questions(read_rows(files, COLUMNS, pictures), lambda row: _question(row, folder))
    if [_number(question) for question in questions] != list(range(1, len(questions) + 1)) or len(questions) % 2:
        raise UserError(f"{folder}: the questions must be numbered 1, 2, 3, ... and come in pairs")
    if len(questions) != 300 or not all(word in questions[n - 1].text.lower() for n, (_, word) in DISPUTED.items()):
        return questions, "labels as the file has them"
    for n, (published, _) in DISPUTED.items():
        right = published if labels == "published" else OTHER[published]
        questions[n - 1] = replace(questions[n - 1], expected=right)
    return questions, f"{labels} labels"


def _number(question: Question) -> int:
    return int(question.id.partition("@")[2])


def _question(row: Row, folder: Path) -> Iterator[Question]:
    number = row.whole("index")
    first = number - (number + 1) % 2
    options = lettered(re.split(r"\s*\(([a-z])\)\s*", row.text("options"))[2::2])  # "(a) long (b) short"
    yield Question(
        id=f"{first}-{first + 1}@{number}",
        type="MMVP",
        text=row.text("question") + lines(options) + BY_LETTER,
        picture=row.picture() if row.pictures else picture_file(folder, f"{IMAGES}/{number}.jpg"),
        options=options,
        expected=row.text("correct_answer").strip("() ").upper(),
    )
