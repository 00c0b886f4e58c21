"""MMBench (arXiv 2307.06281), dev, whose answers are public: options A to D, in one order or in all rotations.

How the number misleads: circular evaluation, the official one, counts a question only if it is answered rightly in
every rotation of its options, and is several points lower than a single pass; `ask.mmbench.rotations` says which, and
so does the protocol. Where no letter can be read the official script asks GPT; here the answer is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.answers import letter
from un2clip.evaluation.mllm.questions import BY_LETTER, Assistant, Question, judge, lettered, lines
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.scores import score_of

MODEL: Model = "mllm"
PROTOCOL = "hint, question, options as lines, LLaVA-1.5's instruction by letter; the letter or the text of an option"
COLUMNS = ("index", "question", "answer", "a", "b")
#: A rotation's index is that of its question and a multiple of this; rotations in the files are made anew here.
ROTATED = 1_000_000
Rotations = Literal["single", "circular"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `ask.mmbench` of params.yaml says.

    Attributes:
        rotations: single | circular.
    """

    rotations: Rotations


def run(assistant: Assistant, folder: Path, *, batch_size: int, options: Options) -> BenchmarkResult:
    """Value 1 for every question whose option is named; types are the categories, a sample is a question's rotations.

    Args:
        folder: mmbench_dev_20230712.tsv, or the dev split in parquet as lmms-lab has it on the hub.
    """
    questions = read(folder, options.rotations)
    return score(questions, assistant.ask(questions, batch_size=batch_size), options.rotations)


def score(questions: Sequence[Question], answers: Sequence[str], rotations: Rotations) -> BenchmarkResult:
    """The outcome of every question, and the table's column."""
    unit = "%" if rotations == "single" else "% of groups"
    return judge(
        questions,
        answers,
        lambda answer, question: letter(answer, question.options),
        unit=unit,
        protocol=f"{PROTOCOL}; {rotations}",
        columns=lambda items: {f"MMBench {rotations}": score_of(items, unit)},
    )


def read(folder: Path, rotations: Rotations) -> list[Question]:
    """Every question, its rotations behind each other; a UserError names the row that is not as it must be."""
    files = find(folder, "en/dev*.parquet", "**/dev*.parquet", "*dev*.tsv")
    rows = read_rows(files, COLUMNS, ("image",))
    return make_questions(rows, lambda row: _questions(row, rotations))


def _questions(row: Row, rotations: Rotations) -> Iterator[Question]:
    index = row.whole("index")
    if index >= ROTATED:
        return
    cells, right = [_text(row.values.get(name)) for name in "abcd"], row.text("answer").upper()
    texts = [text for text in cells if text]
    if cells[: len(texts)] != texts:
        raise ValueError(f"an option before the last is missing: {cells}")
    if right not in lettered(texts):
        raise ValueError(f"the answer {right!r} is none of the options {', '.join(lettered(texts))}")
    hint, kind = _text(row.values.get("hint")), _text(row.values.get("category")) or "MMBench"
    for k in range(len(texts) if rotations == "circular" else 1):
        rotated = lettered(texts[k:] + texts[:k])
        yield Question(
            id=str(index) if rotations == "single" else f"{index}@{k}",
            type=kind,
            text=(f"{hint}\n" if hint else "") + row.text("question") + lines(rotated) + BY_LETTER,
            picture=row.picture(),
            options=rotated,
            expected=list(rotated)[(list(rotated).index(right) - k) % len(texts)],
        )


def _text(value: object) -> str:
    """A cell's text; pandas and the set itself write nan for none."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "none") else text
