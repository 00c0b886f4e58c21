"""NaturalBench (arXiv 2410.14669): two questions times two photographs, whose right answers differ both ways.

How the number misleads: G-Acc counts a group only if all four answers are right, and chance is 6.25 %. It was published
by two protocols: GenHancer takes the option of highest likelihood and has 17.6 for the original; un²CLIP, by another
one, starts from what is taken for 12.7. `ask.naturalbench.choose` says which is used here, and the protocol names it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.answers import first_word
from un2clip.evaluation.mllm.questions import YES_NO, Assistant, Choose, Question, judge
from un2clip.evaluation.mllm.tables import Row, column_names, find, make_questions, read_rows
from un2clip.evidence.crossed import shares
from un2clip.evidence.items import Item

MODEL: Model = "mllm"
PROTOCOL = "the authors' instructions; the option that occurs first, as a whole word"
#: Of each kind: the authors' instruction behind a question, and the options, the first of which is their 1.
KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "yes_no": (" Please answer Yes or No.", YES_NO),
    "multiple_choice": (" Please output the letter corresponding to the correct option.", {"A": "", "B": ""}),
}
#: (question, image) in the order of the flat form, and whether the first option is right there.
CELLS = {(0, 0): True, (0, 1): False, (1, 0): False, (1, 1): True}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `ask.naturalbench` of params.yaml says.

    Attributes:
        choose: generated | likelihood.
    """

    choose: Choose


def run(assistant: Assistant, folder: Path, *, batch_size: int, options: Options) -> BenchmarkResult:
    """Value 1 for every question whose option is chosen; a sample is a group of four.

    Args:
        folder: parquet files as the hub has them, of any revision, a row a group; or lmms-eval's, a row a question.
    """
    questions = read(folder)
    answers = assistant.ask(questions, batch_size=batch_size, choose=options.choose)
    return score(questions, answers, options.choose)


def score(questions: Sequence[Question], answers: Sequence[str], choose: Choose) -> BenchmarkResult:
    """The outcome of every question, and the four accuracies of the paper, in %."""
    return judge(
        questions,
        answers,
        lambda answer, question: first_word(answer, question.options),
        unit="% of groups",
        protocol=f"{PROTOCOL}; {choose}",
        columns=columns,
    )


def columns(items: Sequence[Item]) -> dict[str, float]:
    """Acc: questions; Q-Acc: questions right on both images; I-Acc: images with both right; G-Acc: all four."""
    names = {"Acc": "items", "Q-Acc": "rows", "I-Acc": "columns", "G-Acc": "samples"}
    found = shares(items)
    return {name: 100 * found[kind] for name, kind in names.items()}


def read(folder: Path) -> list[Question]:
    """Every question, the four of a group behind each other; a UserError names the row that is not as it must be."""
    files = find(folder, "data/*.parquet", "**/*.parquet")
    if "image" in column_names(files[0]):
        return make_questions(read_rows(files, ("index", "question", "question_type"), ("image",)), _flat)
    texts = [f"question_{q}" for q in (0, 1)] + [f"image_{i}_question_{q}" for q, i in CELLS]
    return make_questions(read_rows(files, ("index", "question_type", *texts), ("image_0", "image_1")), _group)


def _group(row: Row) -> Iterator[Question]:
    for q, i in CELLS:
        said = row.text(f"image_{i}_question_{q}").strip(".")
        right = said.upper() if len(said) == 1 else said.capitalize()
        yield _question(row, str(row.whole("index")), (q, i), row.text(f"question_{q}"), f"image_{i}", right)


def _flat(row: Row) -> Iterator[Question]:
    """Lmms-eval's form: four rows a group in the order of CELLS, whose right answers always have the same pattern."""
    group, cell = divmod(row.whole("index"), len(CELLS))
    place, first = list(CELLS.items())[cell]
    options = list(_kind(row)[1])
    yield _question(row, str(group), place, row.text("question"), "image", options[0 if first else 1])


def _kind(row: Row) -> tuple[str, Mapping[str, str]]:
    kind = row.text("question_type")
    if kind not in KINDS:
        raise ValueError(f"question type must be {' or '.join(KINDS)}, got {kind!r}")
    return KINDS[kind]


def _question(row: Row, group: str, place: tuple[int, int], text: str, picture: str, right: str) -> Question:
    instruction, options = _kind(row)
    return Question(
        id=f"{group}@q{place[0]}-i{place[1]}",
        type=row.text("question_type"),
        text=text + instruction,
        picture=row.picture(picture),
        options=options,
        expected=right,
    )
