"""POPE (arXiv 2305.10355): is there a ... in the photograph? Of three kinds of absent things, the easiest first.

How the number misleads: half of the answers are yes, so whoever always says yes has 50 % and a recall of 100; read the
share of yes beside it. LLaVA's rule, kept here, takes every answer that has no "no" or "not" for a yes, the empty one
too. A table's "POPE" may be the accuracy or F1, of a subset or their mean: all of them are among the columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.mllm.questions import BY_WORD, YES_NO, Question, judge, picture_file, yes_or_no
from un2clip.evaluation.mllm.tables import Row, find, make_questions, read_rows
from un2clip.evidence.items import Item

MODEL: Model = "mllm"
PROTOCOL = "LLaVA-1.5's instruction by word; LLaVA's eval_pope: no where the first sentence has No, no or not, else yes"
SUBSETS = ("random", "popular", "adversarial")
#: Of the original: COCO's folder of photographs, beside a file of questions a subset.
PHOTOGRAPHS = "val2014"


def score(questions: Sequence[Question], answers: Sequence[str]) -> BenchmarkResult:
    """Value 1 for every question answered rightly; types are the three subsets, samples are photographs.

    Beside the outcomes, the result has five scores of each subset and their means.
    """
    return judge(
        questions,
        answers,
        lambda answer, question: understand(answer),
        unit="%",
        protocol=PROTOCOL,
        columns=lambda items: columns(questions, items),
    )


def understand(answer: str) -> str:
    """LLaVA's rule: the first sentence, without commas, split at blanks; No, no or not is a no, all else a yes."""
    words = answer.strip().split(".")[0].replace(",", "").split(" ")
    return "No" if {"No", "no", "not"} & set(words) else "Yes"


def columns(questions: Sequence[Question], items: Sequence[Item]) -> dict[str, float]:
    """In %: accuracy, precision, recall, F1 and share of yes of each subset, and each one's mean over the subsets."""
    found: dict[str, float] = {}
    pairs = list(zip(questions, items, strict=True))
    subsets = [subset for subset in SUBSETS if any(item.type == subset for item in items)]
    for subset in subsets:
        cells = [(question.expected == "Yes", item.value == 1.0) for question, item in pairs if item.type == subset]
        found |= {f"POPE {subset} {name}": value for name, value in _rates(cells).items()}
    names = [name.removeprefix(f"POPE {subsets[0]} ") for name in found if name.startswith(f"POPE {subsets[0]} ")]
    return found | {f"POPE {name}": fmean(found[f"POPE {subset} {name}"] for subset in subsets) for name in names}


def _rates(cells: Sequence[tuple[bool, bool]]) -> Mapping[str, float]:
    """Of (the right answer is yes, it was given): a ratio without a denominator is 0."""
    true_yes = sum(yes and right for yes, right in cells)
    false_yes = sum(not yes and not right for yes, right in cells)
    false_no = sum(yes and not right for yes, right in cells)
    return {
        "accuracy": 100 * sum(right for _, right in cells) / len(cells),
        "precision": 100 * true_yes / max(1, true_yes + false_yes),
        "recall": 100 * true_yes / max(1, true_yes + false_no),
        "F1": 100 * 2 * true_yes / max(1, 2 * true_yes + false_yes + false_no),
        "yes share": 100 * (true_yes + false_yes) / len(cells),
    }


def read(folder: Path) -> list[Question]:
    """Every question of the files; a UserError names the row that is not as it must be.

    Args:
        folder: parquet files as lmms-lab has them on the hub, or the original coco_pope_*.json beside val2014/.
    """
    files = find(folder, "data/*.parquet", "Full/*.parquet", "**/*.parquet", "coco_pope_*.json")
    if files[0].suffix == ".parquet":
        rows = read_rows(files, ("question_id", "question", "answer", "image_source", "category"), ("image",))
    else:
        rows = read_rows(files, ("question_id", "image", "text", "label"))
    return make_questions(rows, lambda row: _question(row, folder))


def _question(row: Row, folder: Path) -> Iterator[Question]:
    original = "label" in row.values
    photograph = row.text("image" if original else "image_source")
    subset = row.file.stem.rpartition("_")[2] if original else row.text("category")
    if subset not in SUBSETS:
        raise ValueError(f"the subset must be {', '.join(SUBSETS)}, got {subset!r}")
    yield Question(
        id=f"{photograph.removesuffix('.jpg')}@{subset} {row.whole('question_id')}",
        type=subset,
        text=row.text("text" if original else "question") + BY_WORD,
        picture=picture_file(folder, f"{PHOTOGRAPHS}/{photograph}") if original else row.picture(),
        options=YES_NO,
        expected=yes_or_no(row.text("label" if original else "answer")),
    )
