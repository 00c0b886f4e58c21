"""ScienceQA (arXiv 2209.09513), the test questions that have an image: SciQA-IMG of LLaVA's tables.

How the number misleads: many questions are answered by their text alone, and LLaVA's rule counts an answer as wrong
that names its letter in any other way than three ("B", "B. ...", "The answer is B.").
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.questions import BY_LETTER, Question, judge, lettered, lines
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = (
    "hint as context, options as lines, LLaVA-1.5's instruction by letter; LLaVA's eval_science_qa reads the letter"
)
COLUMNS = ("question", "choices", "answer", "hint", "subject")
LETTERS = "ABCDE"


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question answered rightly; types are the subjects.

    Beside the outcomes, the result has the table's column.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: understand(answer, question.options),
        unit="%",
        protocol=PROTOCOL,
        columns=lambda items: {"SciQA-IMG": score_of(items, "%")},
    )


def understand(answer: str, options: Mapping[str, str]) -> str:
    """LLaVA's rule: a letter alone, one with ". " behind it, or one "The answer is X."; "" for anything else."""
    said = answer.strip()
    if said in tuple(LETTERS):
        found = said
    elif len(said) >= 3 and said[0] in LETTERS and said[1:3] == ". ":
        found = said[0]
    else:
        named = re.findall(r"The answer is ([A-Z]).", said)
        found = named[0] if len(named) == 1 else ""
    return found if found in options else ""


def read(folder: Path) -> list[Question]:
    """Every question that has an image; a UserError names the row that is not as it must be.

    Args:
        folder: the test split in parquet as lmms-lab has it on the hub; rows without an image are left out.
    """
    files = find(folder, "ScienceQA-IMG/test*.parquet", "data/test*.parquet", "**/test*.parquet")
    return make_questions(read_rows(files, COLUMNS, ("image",)), _question)


def _question(row: Row) -> Iterator[Question]:
    if not row.pictures:
        return
    options, right = lettered(row.values["choices"]), row.whole("answer")
    hint = str(row.values["hint"] or "").strip()
    yield Question(
        id=str(row.number),
        type=row.text("subject"),
        text=(f"Context: {hint}\n" if hint else "") + row.text("question") + lines(options) + BY_LETTER,
        picture=row.picture(),
        options=options,
        expected=dict(enumerate(options)).get(right, str(right)),
    )
