"""What `shapes` writes to train a multimodal language model with, in LLaVA's own format.

`alignment.json` (a caption a picture), `instruction.json` (questions and answers, several turns a picture) and the
folder `images`. All pictures are of the training half of the world, and their attributes are uniform, so no answer can
be guessed from the question.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from un2clip.assistants.conversations import ALIGNMENT, IMAGE, IMAGES, INSTRUCTION, SPEAKERS
from un2clip.evaluation.mllm.questions import BY_LETTER, BY_WORD, lettered, lines
from un2clip.world import scenes as world
from un2clip.world.probing import Asked, draw_asked
from un2clip.world.scenes import ATTRIBUTES, COLUMN, Ints
from un2clip.world.wording import (
    BY_OPTION,
    BY_YES_NO,
    NOUNS,
    OPEN,
    PRESENCE,
    THINGS,
    WHETHER,
    in_brackets,
    in_line,
    with_article,
)
from un2clip.world.writing import Questions, png, rendered

PICTURE = f"{IMAGE}\n"  # where LLaVA puts the picture's tokens
IMAGES_PER_FOLDER = 1000


def write_conversations(rng: np.random.Generator, questions: Questions, image_px: int, folder: Path) -> None:
    """The two files, which are empty lists where no picture is wanted, and the pictures."""
    scenes, asked = draw_asked(rng, questions.pictures, lambda drawn: ~world.is_heldout(drawn))
    captions, talks = [], []
    for i, pixels in enumerate(rendered(rng, scenes, image_px, "render conversations" if len(scenes) else "")):
        name = f"{i // IMAGES_PER_FOLDER:05d}/{i:09d}.png"  # as LLaVA's own pictures lie
        path = folder / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
        about = {"id": f"{i:09d}", "image": name}
        caption = world.describe(scenes[i], set(COLUMN.values()))
        captions.append(about | {"conversations": _turns([("Describe the picture.", caption)])})
        talks.append(about | {"conversations": _turns(_talk(rng, scenes[i], asked[i], questions.turns))})
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in ((ALIGNMENT, captions), (INSTRUCTION, talks)):
        (folder / name).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def _turns(said: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers as LLaVA has them; the picture stands before the first question."""
    turns = [{"from": speaker, "value": text} for pair in said for speaker, text in zip(SPEAKERS, pair, strict=True)]
    turns[0]["value"] = PICTURE + turns[0]["value"]
    return turns


def _talk(rng: np.random.Generator, scene: Ints, asked: Asked, turns: int) -> list[tuple[str, str]]:
    """Questions of all kinds about one scene, with their right answers; each about another attribute.

    Were one asked about twice, the second answer could be read off the first.
    """
    names = [list(ATTRIBUTES)[column] for column in rng.permutation(np.flatnonzero(asked))[:turns]]
    return [_one(rng, KINDS + (_presence,) * (name in PRESENT))(rng, scene, name) for name in names]


def _open(rng: np.random.Generator, scene: Ints, name: str) -> tuple[str, str]:
    return _one(rng, OPEN).format(noun=NOUNS[name]) + BY_WORD, _value(scene, name)


def _choice(rng: np.random.Generator, scene: Ints, name: str) -> tuple[str, str]:
    """Of all values in their order, or of two in any order, one time in eight; written as the benchmarks write them."""
    right, options = _value(scene, name), list(ATTRIBUTES[name])
    if rng.integers(8) == 0:
        options = [right, _other(rng, name, right)]
        rng.shuffle(options)
    question = _one(rng, OPEN).format(noun=NOUNS[name])
    answer = ascii_uppercase[options.index(right)]
    ways = (
        lines(lettered(options)) + BY_LETTER,
        in_brackets(options) + BY_LETTER,
        in_line(options) + BY_OPTION,
    )
    return question + _one(rng, ways), answer


def _whether(rng: np.random.Generator, scene: Ints, name: str) -> tuple[str, str]:
    """The value is the right one in half of all cases."""
    right, yes = _value(scene, name), bool(rng.integers(2))
    value = right if yes else _other(rng, name, right)
    return _one(rng, WHETHER).format(noun=NOUNS[name], value=value) + _one(rng, (BY_WORD, BY_YES_NO)), _word(yes)


def _presence(rng: np.random.Generator, scene: Ints, name: str) -> tuple[str, str]:
    """Of an object, of one by its colour, or of another thing; objects are there in half of all cases."""
    right, colour, yes = _value(scene, "object"), _value(scene, "colour"), bool(rng.integers(2))
    kind = rng.integers(3)
    if name != "object":
        thing, yes = PRESENT[name], bool(scene[COLUMN[name]])
    elif kind == 0:
        thing = right if yes else _other(rng, "object", right)
    elif yes:
        thing = f"{colour} {right}"
    elif kind == 1:
        thing = f"{_other(rng, 'colour', colour)} {right}"
    else:
        thing = f"{colour} {_other(rng, 'object', right)}"
    return _one(rng, PRESENCE).format(thing=with_article(thing)) + BY_WORD, _word(yes)


#: Mostly a word or a letter: what is to be held against the picture (two options, yes or no) takes a toy more steps.
KINDS = (_open,) * 4 + (_choice,) * 4 + (_whether,)
#: Attribute -> what is asked for: an object, or a thing besides.
PRESENT = {"object": "object"} | {name: thing for thing, name in THINGS.items()}


def _value(scene: Ints, name: str) -> str:
    return ATTRIBUTES[name][scene[COLUMN[name]]]


def _other(rng: np.random.Generator, name: str, value: str) -> str:
    return _one(rng, [each for each in ATTRIBUTES[name] if each != value])


def _one(rng: np.random.Generator, texts: Sequence[Any]) -> Any:
    return texts[int(rng.integers(len(texts)))]


def _word(yes: bool) -> str:
    return "Yes" if yes else "No"
