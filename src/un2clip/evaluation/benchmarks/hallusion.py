"""HallusionBench (arXiv 2310.14566): yes/no questions about figures, of which some were changed so that the answer is.

How the number misleads: the authors ask GPT-4 whether an answer is right, and here its words decide, as VLMEvalKit
does. A table's "Hallusion" may be aAcc, fAcc, qAcc or the mean of the three, and GenHancer does not say which: its 27.6
of the original LLaVA-1.5 is no aAcc, for a coin has 50. The score here is the mean.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.questions import YES_NO, Question, judge, picture_file
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.crossed import shares
from un2clip.evidence.items import Item
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "questions with a figure; 'Please answer yes or no.'; yes or no where only one of the two words occurs"
INSTRUCTION = " Please answer yes or no."
COLUMNS = ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer")


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question answered rightly; types are the categories, a sample is a set of figures.

    Beside the outcomes, the result has the authors' three accuracies and their mean.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: understand(answer),
        unit="% a f q",
        protocol=PROTOCOL,
        columns=columns,
    )


def understand(answer: str) -> str:
    """Yes or No, where just one of them occurs as a word in any case."""
    words = set(re.findall(r"\w+", answer.lower())) & {"yes", "no"}
    return words.pop().capitalize() if len(words) == 1 else ""


def columns(items: Sequence[Item]) -> dict[str, float]:
    """In %: questions (aAcc), figures with all their questions (fAcc), questions on all their figures (qAcc), mean."""
    found = shares(items)
    named = {name: 100 * found[kind] for name, kind in (("aAcc", "items"), ("fAcc", "rows"), ("qAcc", "columns"))}
    return named | {"Hallusion": score_of(items, "% a f q")}


def read(folder: Path) -> list[Question]:
    """Every question that has a figure; a UserError names the row that is not as it must be.

    Args:
        folder: the image split in parquet as lmms-lab has it on the hub, or the original HallusionBench.json beside
            hallusion_bench/.
    """
    files = find(folder, "data/image-*.parquet", "**/image-*.parquet", "HallusionBench.json")
    if files[0].suffix == ".parquet":
        return make_questions(read_rows(files, COLUMNS, ("image",)), lambda row: _question(row, folder))
    rows = read_rows(files, (*COLUMNS, "filename"))
    return make_questions((row for row in rows if row.values["filename"]), lambda row: _question(row, folder))


def _question(row: Row, folder: Path) -> Iterator[Question]:
    category = row.text("category")
    name = str(row.values.get("filename")).removeprefix("./")
    answers = {"1": "Yes", "0": "No"}
    yield Question(
        id=f"{category} {row.text('subcategory')} {row.whole('set_id')}"
        f"@{row.whole('figure_id')}-{row.whole('question_id')}",
        type=category,
        text=row.text("question") + INSTRUCTION,
        picture=row.picture() if row.pictures else picture_file(folder, f"hallusion_bench/{name}"),
        options=YES_NO,
        expected=answers.get(str(row.values["gt_answer"]).strip(), str(row.values["gt_answer"])),
    )
