"""What an answer in words says: lmms-eval's verdicts and hand-made tables are the oracles."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.mllm_sets import publish
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import (
    cv_bench,
    gqa,
    hallusion,
    mmbench,
    mme,
    mmvp,
    naturalbench,
    pope,
    scienceqa,
)
from un2clip.evaluation.mllm.answers import first_word, letter

ROOT = Path(__file__).parents[2]
VERDICTS = json.loads((ROOT / "tests/oracles/lmms_verdicts.json").read_text())
PAGE = (ROOT / "docs/mllm.md").read_text()
#: Of each set: its questions of a folder, and their result.
SETS = {
    "cv_bench": (cv_bench.read, cv_bench.score),
    "mmvp": (lambda folder: mmvp.read(folder, "published")[0], lambda q, a: mmvp.score(q, a, "published labels")),
    "naturalbench": (naturalbench.read, lambda q, a: naturalbench.score(q, a, "generated")),
    "pope": (pope.read, pope.score),
    "mme": (mme.read, mme.score),
    "scienceqa": (scienceqa.read, scienceqa.score),
    "hallusion": (hallusion.read, hallusion.score),
    "gqa": (gqa.read, gqa.score),
    "mmbench": (lambda folder: mmbench.read(folder, "single"), lambda q, a: mmbench.score(q, a, "single")),
}
NAMES = [name for name in VERDICTS if isinstance(VERDICTS[name], dict)]


def questions(name: str, folder: Path) -> list:
    """Of each doc of a set its question, in the order of the docs, read from the published layout."""
    docs = [dict(doc) for doc in VERDICTS[name]["docs"]]
    for i, doc in enumerate(docs):
        if name == "pope":
            doc["question_id"] = str(doc["question_id"])
        if name == "gqa":
            doc["id"] = str(i)
        if name == "mmvp":
            doc["question"] = "Is it long or short?"
    return SETS[name][0](publish(name, folder, docs))


def differing(name: str, folder: Path) -> dict[str, set[tuple[bool, bool]]]:
    """Form of an answer -> the pairs (lmms-eval's verdict, this program's) that differ."""
    asked, found = questions(name, folder), defaultdict(set)
    for number, form, answer, theirs in VERDICTS[name]["cases"]:
        ours = SETS[name][1]([asked[number]], [answer]).items[0].value == 1.0
        if ours != theirs:
            found[form].add((theirs, ours))
    return dict(found)


def listed(name: str) -> dict[str, tuple[str, str]]:
    """The page's table of differences: form of an answer -> what it counts as there, and here."""
    found = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and cells[0] == f"`{name}`":
            for form in re.findall(r"`(\"(?:[^`\"\\]|\\.)*\")`", cells[1]):
                found[json.loads(form)] = (cells[2], cells[3])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_equals_lmms_eval_but_for_the_listed_wordings(name: str, tmp_path: Path) -> None:
    """Every verdict is lmms-eval's, but for the wordings that docs/mllm.md lists; and each of those does differ."""
    there = {(False, True): ("wrong", "right"), (True, False): ("right", "wrong")}
    found = differing(name, tmp_path)
    said = {
        form: there[pairs.copy().pop()] if len(pairs) == 1 else ("either", "either") for form, pairs in found.items()
    }
    assert said == listed(name)
    assert len(VERDICTS[name]["cases"]) >= 45 and {case[3] for case in VERDICTS[name]["cases"]} == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_plain_answers_are_lmms_evals_own(name: str, tmp_path: Path) -> None:
    """Answers that nobody can misread, two thirds right: each score that lmms-eval aggregates is a column here."""
    result = SETS[name][1](questions(name, tmp_path), VERDICTS[name]["plain"])
    wanted = VERDICTS[name]["scores"]
    assert {column: result.columns[column] for column in wanted} == pytest.approx(wanted)
    assert "" not in result.understood


LETTERS = {"A": "a cat", "B": "a dog", "C": "two birds", "D": ""}


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", "B"), ("b", "B"), (" (B) ", "B"), ("B.", "B"), ("B...", "B"), ("**B**", "B"), ("(b", "B"),
        ("B. a dog", "B"), ("B) A dog, it seems", "B"), ("B a dog.", "B"), ("a dog", "B"), ("A Dog.", "B"),
        ("The answer is (B)", "B"), ("Answer: B", "B"), ("The correct option is D.", "D"), ("my choice: C", "C"),
        ("It is (C).", "C"), ("the answer is two  birds", "C"),
        ("", ""), (".", ""), ("a photo", ""), ("A photo", ""), ("an apple", ""), ("E", ""), ("(E)", ""),
        ("B or C", ""), ("B/C", ""), ("(B) or (C)", ""), ("B, C", ""), ("B. A dog", "B"),
        ("Both", ""), ("dog", ""), ("I do not know", ""), ("ABCD", ""),
    ],
)  # fmt: skip
def test_letters_by_a_hand_made_table(answer: str, named: str) -> None:
    """A letter alone or with a mark, or the whole text of an option; whatever can be read in two ways is nothing."""
    assert letter(answer, LETTERS) == named


def test_a_text_that_two_options_have_names_neither() -> None:
    assert letter("a cat", {"A": "a cat", "B": "A cat."}) == "" and letter("B", {"A": "a cat", "B": "A cat."}) == "B"


@pytest.mark.parametrize(
    ("answer", "words", "found"),
    [
        ("Yes", ("Yes", "No"), "Yes"), ("no, but yes", ("Yes", "No"), "No"), ("Nothing, yes", ("Yes", "No"), "Yes"),
        ("not really", ("Yes", "No"), ""), ("", ("A", "B"), ""), ("option b", ("A", "B"), "B"), ("AB", ("A", "B"), ""),
    ],
)  # fmt: skip
def test_the_first_of_two_words_by_a_hand_made_table(answer: str, words: tuple[str, str], found: str) -> None:
    """NaturalBench's rule: whole words in any case, and of two the earlier."""
    assert first_word(answer, words) == found


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "Yes"), ("yes", "Yes"), ("No", "No"), ("no", "No"), ("No, x", "No"), ("Yes, x", "Yes"), ("No.", "No"),
        ("no\n", "No"), ("There is no dog.", "No"), ("It is not there", "No"), ("There is a dog. No", "Yes"),
        ("Yes. No.", "Yes"), ("NO", "Yes"), ("nope", "Yes"), ("None", "Yes"), ("", "Yes"), ("maybe", "Yes"),
        ("no-one", "Yes"), ("Noon", "Yes"), ("(no)", "Yes"),
    ],
)  # fmt: skip
def test_llavas_rule_of_pope_by_a_hand_made_table(answer: str, said: str) -> None:
    """As eval_pope.py: the first sentence, commas out, split at blanks; only No, no and not are a no."""
    assert pope.understand(answer) == said


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", "B"), (" B\n", "B"), ("B. a dog", "B"), ("The answer is B.", "B"), ("I say: The answer is C. So", "C"),
        ("b", ""), ("B.", ""), ("B)", ""), ("(B)", ""), ("B a dog", ""), ("The answer is B", ""),
        ("the answer is B.", ""),
        ("The answer is B. The answer is C.", ""), ("E", ""), ("The answer is E.", ""), ("F. x", ""), ("", ""),
        ("a dog", ""),
    ],
)  # fmt: skip
def test_llavas_rule_of_scienceqa_by_a_hand_made_table(answer: str, named: str) -> None:
    """As eval_science_qa.py: "B", "B. ...", or "The answer is B." once; a letter that is no option is wrong."""
    assert scienceqa.understand(answer, LETTERS) == named


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", "Yes"), ("Y.e.s", "Yes"), ("no yes", "No"), ("a yes", ""), ("oyes", "Yes"), ("  Yes, ", "Yes"),
        ("y", ""), ("is no", ""), ("", ""),
    ],
)  # fmt: skip
def test_mmes_rule_by_a_hand_made_table(answer: str, said: str) -> None:
    """The first four letters decide, without full stops."""
    assert mme.understand(answer) == said


def test_as_many_answers_as_questions(tmp_path: Path) -> None:
    """An answer that is missing is no wrong answer."""
    asked = questions("pope", tmp_path)
    with pytest.raises(UserError, match="84 questions have 83 answers"):
        pope.score(asked, ["Yes"] * 83)
