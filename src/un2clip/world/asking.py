"""The four benchmarks of a multimodal language model that `shapes` writes, in their published layouts.

All scenes are of the held-out half of the world. Chance is known by construction: of every question text each of its
options is right equally often, so nobody who does not look at the picture, not even with the answers of all other
questions at hand, is better than

- `cv_bench`: one in as many as the attribute has values;
- `mmvp`: 50 % of the questions, and of the pairs none with a constant answer, 25 % with a coin;
- `naturalbench`: 50 % of the questions, and of the groups none, or 6.25 % with a coin;
- `pope`: 50 % of each subset.

POPE's subsets, by what is asked for where it is not there: random, an object that has nothing to do with the picture;
popular, what scenes have most often besides an object; adversarial, the picture's own object in another colour, or
another object in its colour.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image

from un2clip.world import scenes as world
from un2clip.world.probing import draw_asked
from un2clip.world.scenes import ATTRIBUTES, COLUMN, Ints
from un2clip.world.wording import (
    CV_BENCH,
    MMVP,
    NATURAL_CHOICE,
    NATURAL_WHETHER,
    NOUNS,
    POPE,
    THINGS,
    in_brackets,
    in_line,
    with_article,
)
from un2clip.world.writing import Pixels, Shapes, draw_pairs, png, rendered

Pairs = tuple[Ints, Ints]
Rows = list[dict[str, Any]]
#: Attributes in which two scenes may differ alone; the background differs besides.
PAIRED = tuple(name for name in ATTRIBUTES if name != "background")


def write_cv_bench(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """test_2d.parquet: choices of all values of an attribute, which is the question's source; a scene a question.

    Where `of_each` is no multiple of an attribute's values, there are as many questions more as make it one.
    """
    rows: Rows = []
    for name, values in ATTRIBUTES.items():
        scenes = _of_every_value(rng, name, -(-params.questions.of_each // len(values)))
        for scene, pixels in zip(scenes, rendered(rng, scenes, params.image_px), strict=True):
            question, number = CV_BENCH.format(noun=NOUNS[name]), len(rows)
            rows.append({
                "idx": number, "type": "2D", "task": name, "image": _cell(pixels), "question": question,
                "choices": list(values), "answer": f"({ascii_uppercase[scene[COLUMN[name]]]})",
                "prompt": question + in_brackets(values), "filename": f"{number:06d}.png", "source": name,
                "source_dataset": "laptop world", "source_filename": f"{number:06d}.png",
            })  # fmt: skip
    _save(rows, folder / "test_2d.parquet")


def write_mmvp(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """Questions.csv and `MMVP Images`: one question of the two values in which a pair differs, asked of both."""
    (folder / "MMVP Images").mkdir(parents=True, exist_ok=True)
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["lndex", "Question", "Options", "Correct Answer"])  # as published
        number = 0
        for name in PAIRED:
            pairs = draw_pairs(rng, name, params.questions.of_each, params.plain)
            for values, pictures in _pictured(rng, pairs, name, params.image_px):
                options = sorted(values)
                said = " ".join(f"({'ab'[i]}) {ATTRIBUTES[name][value]}" for i, value in enumerate(options))
                for value, pixels in zip(values, pictures, strict=True):
                    number += 1
                    right = "ab"[options.index(value)]
                    rows.writerow([number, MMVP.format(noun=NOUNS[name]), said, f"({right})"])
                    path = folder / "MMVP Images" / f"{number}.jpg"
                    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


def write_naturalbench(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """A parquet file with a group a row: two questions of the two values in which its two pictures differ.

    By turns each value is asked for with yes or no, or both are options, in the one order and in the other.
    """
    rows: Rows = []
    for name in PAIRED:
        pairs = draw_pairs(rng, name, params.questions.of_each, params.plain)
        for (first, second), pictures in _pictured(rng, pairs, name, params.image_px):
            words = [ATTRIBUTES[name][value] for value in (first, second)]
            orders = (words, words[::-1])
            if len(rows) % 2:
                kind, answers = "multiple_choice", ("A", "B")
                texts = [NATURAL_CHOICE.format(noun=NOUNS[name]) + in_line(order) for order in orders]
            else:
                kind, answers = "yes_no", ("Yes", "No")
                texts = [NATURAL_WHETHER.format(noun=NOUNS[name], value=order[0]) for order in orders]
            rows.append(
                {"Index": len(rows), "Question_Type": kind, "Source": name}
                | {f"Image_{i}": _cell(pixels) for i, pixels in enumerate(pictures)}
                | {f"Question_{q}": text for q, text in enumerate(texts)}
                | {f"Image_{i}_Question_{q}": answers[q != i] for q in (0, 1) for i in (0, 1)}
            )
    _save(rows, folder / "data" / "train-00000-of-00001.parquet")


def write_pope(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """A parquet file with a question a row, of which the answer to every text is yes as often as no."""
    n, plain = params.questions.of_each, params.plain
    rows: Rows = []
    strangers = [("random", "{object}", _draw_strangers(rng, "object", n, plain))]
    present = [
        ("popular", thing, _draw_presence(rng, name, len(range(i, 2 * n, len(THINGS))), plain))
        for i, (thing, name) in enumerate(THINGS.items())
    ]
    alike = [
        ("adversarial", "{colour} {object}", draw_pairs(rng, name, len(range(i, n, 2)), plain))
        for i, name in enumerate(("object", "colour"))
    ]
    for subset, form, pairs in strangers + present + alike:
        for scenes, pictures in zip(zip(*pairs, strict=True), _by_two(rng, pairs, params.image_px), strict=True):
            things = list(dict.fromkeys(form.format(**_values(scene)) for scene in scenes))
            for i, pixels in enumerate(pictures):
                source = f"scene{len(rows):06d}"
                for j, thing in enumerate(things):
                    rows.append({
                        "id": str(len(rows)), "question_id": str(len(rows)),
                        "question": POPE.format(thing=with_article(thing)), "answer": "yes" if i == j else "no",
                        "image_source": source, "image": _cell(pixels), "category": subset,
                    })  # fmt: skip
    _save(rows, folder / "data" / "test-00000-of-00001.parquet")


def _of_every_value(rng: np.random.Generator, name: str, n: int) -> Ints:
    """n held-out scenes of every value of an attribute, by turns; the other attributes are uniform."""
    values, column = len(ATTRIBUTES[name]), COLUMN[name]
    found = [np.zeros((0, len(ATTRIBUTES)), np.int64)] * values
    while min(map(len, found)) < n:
        scenes, asked = draw_asked(rng, 4 * values * n, world.is_heldout)
        of = [scenes[asked[:, column] & (scenes[:, column] == value)] for value in range(values)]
        found = [np.concatenate(both) for both in zip(found, of, strict=True)]
    return np.stack([each[:n] for each in found], axis=1).reshape(-1, len(ATTRIBUTES))


def _draw_strangers(rng: np.random.Generator, name: str, n: int, plain: float) -> Pairs:
    """n pairs of held-out scenes that have nothing to do with each other and differ in an attribute."""

    def draw() -> Pairs:
        left, right = (world.draw(rng, 2 * n, plain=plain, heldout=True) for _ in range(2))
        good = left[:, COLUMN[name]] != right[:, COLUMN[name]]
        return left[good], right[good]

    return _enough(draw, n)


def _draw_presence(rng: np.random.Generator, name: str, n: int, plain: float) -> Pairs:
    """n pairs of held-out scenes, one with what the attribute's first value lacks; else only backgrounds differ."""
    column, background = COLUMN[name], COLUMN["background"]

    def draw() -> Pairs:
        left = world.draw(rng, 64 * n, plain=plain, heldout=True)
        right = left.copy()
        right[:, column] = 0
        right[:, background] = rng.integers(len(ATTRIBUTES["background"]), size=len(right))
        good = (left[:, column] > 0) & world.is_heldout(right)
        return left[good], right[good]

    return _enough(draw, n)


def _enough(draw: Callable[[], Pairs], n: int) -> Pairs:
    lefts, rights = (np.zeros((0, len(ATTRIBUTES)), np.int64) for _ in range(2))
    while len(lefts) < n:
        left, right = draw()
        lefts, rights = np.concatenate([lefts, left]), np.concatenate([rights, right])
    return lefts[:n], rights[:n]


def _pictured(
    rng: np.random.Generator, pairs: Pairs, name: str, image_px: int
) -> Iterator[tuple[tuple[int, int], tuple[Pixels, Pixels]]]:
    """Of each pair the two values of an attribute, and the two pictures."""
    values = zip(*(each[:, COLUMN[name]].tolist() for each in pairs), strict=True)
    yield from zip(values, _by_two(rng, pairs, image_px), strict=True)


def _by_two(rng: np.random.Generator, pairs: Pairs, image_px: int) -> Iterator[tuple[Pixels, Pixels]]:
    pictures = rendered(rng, np.stack(pairs, axis=1).reshape(-1, len(ATTRIBUTES)), image_px)
    yield from zip(pictures, pictures, strict=True)


def _values(scene: Ints) -> dict[str, str]:
    """Attribute -> the scene's value."""
    return {name: values[scene[COLUMN[name]]] for name, values in ATTRIBUTES.items()}


def _cell(pixels: Pixels) -> dict[str, Any]:
    """A picture as the hub's libraries write it."""
    return {"bytes": png(pixels), "path": None}


def _save(rows: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        name: pa.array([row[name] for row in rows], kind if isinstance(value, dict) else None)
        for name, value in rows[0].items()
    }
    pq.write_table(pa.table(columns), path, row_group_size=512)


#: Benchmark -> what writes it.
ASKED: dict[str, Callable[[np.random.Generator, Shapes, Path], None]] = {
    "cv_bench": write_cv_bench,
    "mmvp": write_mmvp,
    "naturalbench": write_naturalbench,
    "pope": write_pope,
}
