"""Conversations in LLaVA's own format: a list of {"id", "image", "conversations": [{"from", "value"}, ...]}.

A picture stands where its first question has `<image>`; a conversation without "image" is of text alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from un2clip.errors import UserError, cause
from un2clip.files.texts import read_json

IMAGE = "<image>"  # the token of a picture
#: The two files of a folder of instructions, and the folder of their pictures.
ALIGNMENT, INSTRUCTION, IMAGES = "alignment.json", "instruction.json", "images"
LARGEST = 2_000_000_000  # bytes; llava_v1_5_mix665k.json has half as many
SPEAKERS = ("human", "gpt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One conversation.

    Attributes:
        id: for messages.
        image: path of its picture within the folder of pictures; "" for none.
        turns: (question, answer) of each turn, without the image token.
    """

    id: str
    image: str
    turns: tuple[tuple[str, str], ...]

    @property
    def words(self) -> int:
        """How long it is, as LLaVA measures it before it groups."""
        return sum(len(text.split()) for turn in self.turns for text in turn)


def read_conversations(file: Path, images: Path, *, captions: bool = False) -> list[Conversation]:
    """All conversations of a file; every picture must be there.

    Args:
        captions: whether each must be one answer, the caption of a picture.

    As in LLaVA an answer before the first question is passed over, and so is a question without an answer at the end.

    Raises:
        UserError: it is no such list, one of its conversations has no answer, a picture without its place or a place
            without a picture, or a picture is not there; names the conversation.
    """
    content = read_json(file, largest=LARGEST)
    if not isinstance(content, list) or not content:
        raise UserError(f"{file} must be a list of conversations, and has none")
    found = [_conversation(each, f"{file}, conversation {i}") for i, each in enumerate(content)]
    for each in found:
        if captions and (len(each.turns) > 1 or not each.image):
            raise UserError(f"{file}, id {each.id}: to align there must be a picture and one answer, its caption")
    for image in tqdm(sorted({each.image for each in found} - {""}), desc=f"look for {IMAGES}", disable=None):
        if not (images / image).is_file():
            raise UserError(f"{file}: the picture {images / image} is not there; `image` is a path below {images}")
    return found


def texts_of(conversations: list[Conversation]) -> Iterator[str]:
    """Every question and answer, as they stand in a prompt."""
    return (f"USER: {question} ASSISTANT: {answer}" for each in conversations for question, answer in each.turns)


def _conversation(content: Any, name: str) -> Conversation:
    if not isinstance(content, dict) or not isinstance(content.get("conversations"), list):
        raise UserError(f'{name} must be {{"id", "image", "conversations": [...]}}, got {cause(content)}')
    name = f"{name} (id {content.get('id')})"
    image = content.get("image", "")
    path = PurePosixPath(image) if isinstance(image, str) else None
    if path is None or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{name}: image must be a path within the folder of pictures, got {cause(image)}")
    said = [_said(turn, name) for turn in content["conversations"]]
    if said and said[0][0] == "gpt":
        said = said[1:]
    said = said[: len(said) // 2 * 2]
    if not said:
        raise UserError(f"{name} has no question with an answer")
    for number, (speaker, _) in enumerate(said):
        if speaker != SPEAKERS[number % 2]:
            raise UserError(f"{name}: turns must alternate between human and gpt; turn {number} is from {speaker}")
    places = [number for number, (_, text) in enumerate(said) for _ in range(text.count(IMAGE))]
    if image and places != [0]:
        what = "no" if not places else "another place or number of"
        raise UserError(f"{name} has a picture and {what} {IMAGE}; it must stand once, in the first question")
    if places and not image:
        raise UserError(f"{name} has {IMAGE} and no picture; give it an `image`, or take the token out")
    texts = [text.replace(IMAGE, "").strip() if number == 0 else text for number, (_, text) in enumerate(said)]
    return Conversation(id=str(content.get("id")), image=image, turns=tuple(zip(texts[::2], texts[1::2], strict=True)))


def _said(turn: Any, name: str) -> tuple[str, str]:
    if not isinstance(turn, dict) or turn.get("from") not in SPEAKERS or not isinstance(turn.get("value"), str):
        raise UserError(f'{name}: a turn must be {{"from": "human" or "gpt", "value": text}}, got {cause(turn)}')
    return turn["from"], turn["value"]
