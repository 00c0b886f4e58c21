"""What the laptop world has for language models: LLaVA's two files, and four benchmarks whose chance is known."""

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import WORLD
from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult, cv_bench, mmvp, naturalbench, pope
from un2clip.evaluation.mllm.questions import Question
from un2clip.hashes import folder_sha256
from un2clip.stages.shapes import Shapes, shapes
from un2clip.world.asking import PAIRED
from un2clip.world.scenes import ATTRIBUTES, BACKGROUND
from un2clip.world.wording import NOUNS
from un2clip.world.writing import Questions

OF_EACH = 5  # no multiple of anything
ASKED = Questions(pictures=300, turns=6, of_each=OF_EACH)
READ: dict[str, Callable[[Path], list[Question]]] = {
    "cv_bench": cv_bench.read,
    "mmvp": lambda folder: mmvp.read(folder, "published")[0],
    "naturalbench": naturalbench.read,
    "pope": pope.read,
}
SCORE: dict[str, Callable[[Sequence[Question], Sequence[str]], BenchmarkResult]] = {
    "cv_bench": cv_bench.score,
    "mmvp": lambda questions, answers: mmvp.score(questions, answers, "published"),
    "naturalbench": lambda questions, answers: naturalbench.score(questions, answers, "generated"),
    "pope": pope.score,
}


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory) -> Path:
    """The tiny world with its seed, and questions besides."""
    folder = tmp_path_factory.mktemp("asked")
    params = dataclasses.replace(tiny.section(Shapes, "shapes"), questions=ASKED)
    shapes(params, seed=1, **{name: folder / name for name in WORLD})
    return folder


@pytest.fixture(scope="module")
def questions(asked: Path) -> dict[str, list[Question]]:
    return {name: read(asked / "benchmarks" / name) for name, read in READ.items()}


@pytest.fixture(scope="module")
def training(asked: Path) -> dict[str, list[dict]]:
    names = ("alignment", "instruction")
    return {name: json.loads((asked / f"instructions/{name}.json").read_text()) for name in names}


def turns(training: dict[str, list[dict]], speaker: str, name: str = "instruction") -> list[str]:
    return [turn["value"] for each in training[name] for turn in each["conversations"] if turn["from"] == speaker]


def test_questions_change_nothing_of_the_world(tiny, asked: Path) -> None:
    """Pixels, captions and every other benchmark are the same bytes with questions and without."""
    assert folder_sha256(asked / "images") == folder_sha256(tiny.images)
    beside = {path.name for path in tiny.benchmarks.iterdir()}
    assert {path.name for path in (asked / "benchmarks").iterdir()} == beside | READ.keys() and not beside & READ.keys()
    for name in beside:
        assert folder_sha256(asked / "benchmarks" / name) == folder_sha256(tiny.benchmarks / name)


def test_the_world_without_questions(tiny) -> None:
    """Two empty lists, and no picture."""
    found = {path.name: path.read_text() for path in tiny.instructions.rglob("*")}
    assert found == {"alignment.json": "[]\n", "instruction.json": "[]\n"}


@pytest.mark.parametrize("name", ["alignment", "instruction"])
def test_training_is_in_llavas_format(asked: Path, training: dict[str, list[dict]], name: str) -> None:
    """By turns human and gpt, the picture before the first question and nowhere else, an image that is there."""
    assert len(training[name]) == ASKED.pictures and len({each["id"] for each in training[name]}) == ASKED.pictures
    for each in training[name]:
        assert set(each) == {"id", "image", "conversations"}
        assert Image.open(asked / "instructions/images" / each["image"]).size == (32, 32)
        first, *others = each["conversations"]
        assert len(each["conversations"]) == 2 * (ASKED.turns if name == "instruction" else 1)
        assert [turn["from"] for turn in each["conversations"][::2]] == ["human"] * (len(others) // 2 + 1)
        assert [turn["from"] for turn in each["conversations"][1::2]] == ["gpt"] * (len(others) // 2 + 1)
        assert first["value"].startswith("<image>\n") and "<image>" not in first["value"][8:]
        assert not any("<image>" in turn["value"] for turn in others)


def test_training_says_what_is_to_be_seen(training: dict[str, list[dict]]) -> None:
    """An answer about an attribute is the value that the caption of the same picture names."""
    held = 0
    for caption, talk in zip(*training.values(), strict=True):
        said = caption["conversations"][1]["value"]
        pairs = [turn["value"] for turn in talk["conversations"]]
        for question, answer in zip(pairs[::2], pairs[1::2], strict=True):
            if "the colour" in question and answer in ATTRIBUTES["colour"]:
                assert f" {answer} " in said
                held += 1
            if "there a dot?" in question or "a dot in the" in question:
                assert ("with a dot" in said) == (answer == "Yes")
                held += 1
            lines = dict(re.findall(r"\(?([A-F])[).:] ?(\w+)", question))
            if lines:
                assert answer in lines and (lines[answer] == "none" or lines[answer] in PLAIN or lines[answer] in said)
                held += 1
    assert held > 50


#: Values that captions do not name by their own word.
PLAIN = ("smooth", "plain", "dotted", "near", "far")


def test_a_conversation_asks_once_for_an_attribute(training: dict[str, list[dict]]) -> None:
    """So no answer can be read off an earlier one. As many turns as are wanted, and most name what they ask for."""
    named = 0
    for talk in training["instruction"]:
        asked = [re.split(r"[?.]", turn["value"])[0] for turn in talk["conversations"][::2]]
        nouns = [noun for noun in NOUNS.values() for text in asked if re.search(rf"the {noun}\b", text)]
        assert len(set(nouns)) == len(nouns) and len(asked) == ASKED.turns
        named += len(nouns)
    assert named > 0.8 * ASKED.turns * ASKED.pictures


def test_training_and_benchmarks_share_no_question_and_every_word(
    training: dict[str, list[dict]], questions: dict[str, list[Question]]
) -> None:
    """No prompt of a benchmark, and no first sentence of one, is in training; and no word is new in a benchmark."""
    taught = turns(training, "human")
    words = {word for text in taught for word in re.findall(r"\w+|[^\w\s]", text)}
    for name, asked in questions.items():
        sentences = {question.text.partition("\n")[0].split(" Select ")[0].split(" Option:")[0] for question in asked}
        if name == "naturalbench":
            sentences = {sentence.removesuffix(" Please answer Yes or No.") for sentence in sentences}
        assert not any(sentence in text for sentence in sentences for text in taught), name
        assert {word for each in asked for word in re.findall(r"\w+|[^\w\s]", each.text)} <= words, name


def test_training_answers_yes_as_often_as_no(training: dict[str, list[dict]]) -> None:
    """Within four standard errors, of all questions with two answers."""
    counts = Counter(answer for answer in turns(training, "gpt") if answer in ("Yes", "No"))
    n = counts.total()
    assert n > 100 and counts["Yes"] / n == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / n))


def test_training_and_benchmarks_share_no_scene(asked: Path, training: dict[str, list[dict]]) -> None:
    """Pictures of the two halves of the world: the pixels of no benchmark occur in training."""
    trained = {np.asarray(Image.open(path)).tobytes() for path in (asked / "instructions/images").rglob("*.png")}
    assert len(trained) == ASKED.pictures
    for name, read in READ.items():
        shown = {np.asarray(question.picture.load()).tobytes() for question in read(asked / "benchmarks" / name)}
        assert shown and not shown & trained


@pytest.mark.parametrize("name", READ)
def test_each_option_is_right_equally_often(questions: dict[str, list[Question]], name: str) -> None:
    """Of every text that is asked, and so of every attribute."""
    right: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in questions[name]:
        right[question.type, question.text][question.expected] += 1
    options = {(question.type, question.text): set(question.options) for question in questions[name]}
    for key, counts in right.items():
        assert set(counts) == options[key] and len({*counts.values()}) == 1, (key, counts)
    assert len(right) >= {"cv_bench": 12, "mmvp": 11, "naturalbench": 22, "pope": 9}[name]


def constant(questions: Sequence[Question]) -> list[str]:
    """The first option, whatever is asked."""
    return [next(iter(question.options)) for question in questions]


def majority(questions: Sequence[Question]) -> list[str]:
    """Of each text the answer that is right most often, known from the answers themselves; of several, the last."""
    right: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        right[question.text][question.expected] += 1
    best = {text: max(reversed(list(counts)), key=counts.__getitem__) for text, counts in right.items()}
    return [best[question.text] for question in questions]


@pytest.mark.parametrize("answerer", [constant, majority])
def test_who_does_not_look_is_at_chance(questions: dict[str, list[Question]], answerer) -> None:
    """A constant answer, and the best that can be known without the picture, score exactly chance."""
    found = {name: SCORE[name](asked, answerer(asked)) for name, asked in questions.items()}
    chance = {f"CV-2D {name}": 100 / len(values) for name, values in ATTRIBUTES.items()}
    chance["CV-2D"] = chance["CV-Bench"] = np.mean(list(chance.values()))
    assert found["cv_bench"].columns == pytest.approx(chance)
    assert found["mmvp"].columns == {"MMVP": 0.0, "MMVP single": 50.0}
    natural = found["naturalbench"].columns
    assert (natural["Acc"], natural["Q-Acc"], natural["G-Acc"]) == (50.0, 0.0, 0.0)
    for subset in pope.SUBSETS:
        assert found["pope"].columns[f"POPE {subset} accuracy"] == 50.0


def test_the_right_answers_are_the_pictures_own(questions: dict[str, list[Question]]) -> None:
    """The pictures' corners say which background is the right one, but for a letter in one of them and the light."""
    right = 0
    for question in (each for each in questions["cv_bench"] if each.type == "2D background"):
        pixels = np.asarray(question.picture.load(), np.float32)
        corners = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        value = ATTRIBUTES["background"][int(np.abs(BACKGROUND - corners).sum(1).argmin())]
        right += question.options[question.expected] == value
    assert right >= 7, "of eight"


def test_sizes_are_as_asked(questions: dict[str, list[Question]]) -> None:
    """Of each attribute `of_each`, rounded up to a multiple of its values; pairs, groups and subsets alike."""
    counts = Counter(question.type.removeprefix("2D ") for question in questions["cv_bench"])
    assert counts == {name: -(-OF_EACH // len(values)) * len(values) for name, values in ATTRIBUTES.items()}
    assert len(questions["mmvp"]) == 2 * OF_EACH * len(PAIRED)
    assert len(questions["naturalbench"]) == 4 * OF_EACH * len(PAIRED)
    assert Counter(question.type for question in questions["pope"]) == dict.fromkeys(pope.SUBSETS, 4 * OF_EACH)


@pytest.mark.parametrize(("name", "value"), [("pictures", -1), ("turns", 0), ("turns", 10), ("of_each", -1)])
def test_bad_numbers_of_questions_are_refused(tiny, name: str, value: int) -> None:
    section = tiny.params["shapes"]
    with pytest.raises(UserError, match=f"shapes.questions.{name} must be .*, got {value}"):
        build(Shapes, section | {"questions": section["questions"] | {name: value}}, "shapes")
