"""A question of a multimodal language model, and what answers to all of a set become: a pure function of the two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Literal, Protocol

from PIL import Image

from un2clip.errors import UserError, reason
from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evaluation.readers import read_image
from un2clip.evidence.items import Item

#: generated: the answer is what is said; likelihood: the option that is likeliest as an answer.
Choose = Literal["generated", "likelihood"]
#: LLaVA-1.5's two instructions, behind a question.
BY_LETTER = "\nAnswer with the option's letter from the given choices directly."
BY_WORD = "\nAnswer the question using a single word or phrase."
YES_NO: Mapping[str, str] = {"Yes": "", "No": ""}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that is read when it is asked about.

    Attributes:
        name: for messages.
        read: gives the file's bytes, or where it lies.
    """

    name: str
    read: Callable[[], bytes | Path]

    def load(self) -> Image.Image:
        """Decode it to RGB; a UserError begins with its name."""
        try:
            source = self.read()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name} cannot be read: {reason(error)}") from None
        return read_image(source, self.name)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture.

    Attributes:
        id: of its item: `sample@part` where several belong to one sample.
        type: of its item.
        text: all that is said to the model, without the picture's place.
        picture: that it is asked about.
        options: what may be answered, such as A or Yes -> the text that it stands for; {} where any words may.
        expected: the right answer, one of the options where there are some.

    Raises:
        ValueError: no text, one option, or a right answer that is none of the options.
    """

    id: str
    type: str
    text: str
    picture: Picture
    options: Mapping[str, str]
    expected: str

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.expected.strip():
            raise ValueError("a question needs a text and an answer")
        if len(self.options) == 1:
            raise ValueError("a question needs two options, or none")
        if self.options and self.expected not in self.options:
            raise ValueError(f"the answer {self.expected!r} is none of the options {', '.join(self.options)}")


class Assistant(Protocol):
    """Whatever answers questions; `protocol` is what of it moves the answers, for the scores' protocol."""

    protocol: str

    def ask(self, questions: Sequence[Question], *, batch_size: int, choose: Choose = "generated") -> list[str]:
        """The answers, in the order of the questions."""


def lettered(texts: object) -> dict[str, str]:
    """Options A, B, ... of texts in their order.

    Raises:
        ValueError: they are no list of at least two texts.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"the options must be a list of texts, got {texts!r}")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise ValueError(f"a question needs two options at least, got {len(texts)}")
    return dict(zip(ascii_uppercase, (text.strip() for text in texts), strict=False))


def lines(options: Mapping[str, str]) -> str:
    """The options as LLaVA lists them, a line each: `A. a cat`."""
    return "".join(f"\n{letter}. {text}" for letter, text in options.items())


def yes_or_no(text: str) -> str:
    """The right answer Yes or No of a set's own spelling; anything else is returned, and refused by `Question`."""
    return text.strip().rstrip(".").capitalize()


def picture_file(folder: Path, name: str) -> Picture:
    """A picture that lies below a folder.

    Raises:
        ValueError: the name leads out of it, or there is no such file.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
        raise ValueError(f"no image {folder / path}")
    return Picture(name=str(folder / path), read=lambda: folder / path)


def judge(
    questions: Sequence[Question],
    answers: Sequence[str],
    understand: Callable[[str, Question], str],
    *,
    unit: str,
    protocol: str,
    columns: Callable[[Sequence[Item]], Mapping[str, float]],
) -> BenchmarkResult:
    """An item a question, right (1) or wrong (0), in the order of the questions.

    Args:
        answers: one a question, in the same order.
        understand: an answer and its question -> which option it names, or the words that are compared with the right
            answer; "" where it names none, which is wrong.
        unit: of the items.
        protocol: how it was asked and understood.
        columns: items -> the scores by the names that published tables have, in the tables' scale.

    Raises:
        UserError: there are not as many answers as questions.
    """
    if len(answers) != len(questions):
        raise UserError(f"{len(questions)} questions have {len(answers)} answers; a question without one has no score")
    understood = [understand(answer, question) for answer, question in zip(answers, questions, strict=True)]
    items = tuple(
        Item(id=question.id, type=question.type, value=float(words == question.expected))
        for words, question in zip(understood, questions, strict=True)
    )
    return BenchmarkResult(
        unit=unit, protocol=protocol, items=items, columns=columns(items), understood=tuple(understood)
    )
