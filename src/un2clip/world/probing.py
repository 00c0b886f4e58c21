"""Scenes that attributes are read from: what `shapes` writes for the benchmark `probe`.

All attributes are uniform and independent of each other, unlike in the world's other scenes, so chance is one in as
many values as there are, and no attribute can be told from another. A ball needs one object in the centre, so half of
the scenes have that and are asked for the relation; the other half have no ball and are asked for count and position.
Orientation is asked of what points. All scenes are of the held-out half of the world, and training and test share no
combination of attributes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from un2clip.world import scenes as world
from un2clip.world.scenes import ATTRIBUTES, COLUMN, POINTING, Ints
from un2clip.world.writing import Shapes, png, rendered, write_tar

Asked = NDArray[np.bool_]


def draw_asked(rng: np.random.Generator, n: int, wanted: Callable[[Ints], Asked]) -> tuple[Ints, Asked]:
    """Scenes (n, attributes), by turns with a ball and without, and which attributes can be asked of each, as large.

    Args:
        n: number of scenes.
        wanted: scenes (N, attributes) -> which of them may be drawn, (N,) bool.
    """
    halves = np.stack([_draw_half(rng, (n + 1) // 2, wanted, ball=ball) for ball in (True, False)], axis=1)
    scenes = halves.reshape(-1, len(ATTRIBUTES))[:n]
    asked = np.ones(scenes.shape, np.bool_)
    asked[::2, [COLUMN["count"], COLUMN["position"]]] = False
    asked[1::2, COLUMN["relation"]] = False
    pointing = [ATTRIBUTES["object"].index(name) for name in POINTING]
    asked[:, COLUMN["orientation"]] = np.isin(scenes[:, COLUMN["object"]], pointing)
    return scenes, asked


def draw_balanced(rng: np.random.Generator, per_attribute: int) -> tuple[Ints, Asked]:
    """Test scenes of which every attribute is asked `per_attribute` times, as often for each of its values.

    Where that does not divide, the first values are asked for once more than the others.
    """
    n = 2 * per_attribute
    while True:
        n += max(12, n // 16)
        scenes, asked = draw_asked(rng, n, of_test)
        for column, values in enumerate(ATTRIBUTES.values()):
            for value in range(len(values)):
                share = len(range(value, per_attribute, len(values)))
                of_value = np.flatnonzero(asked[:, column] & (scenes[:, column] == value))
                asked[of_value[share:], column] = False
        if (asked.sum(0) == per_attribute).all():
            return scenes[asked.any(1)], asked[asked.any(1)]


def write_probe(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """train/0.tar and test/0.tar; a sample is a scene and its labels, null where an attribute is not asked."""
    parts = {
        "train": draw_asked(rng, params.probe_train_scenes, of_train),
        "test": draw_balanced(rng, params.probe_test_per_attribute),
    }
    for part, (scenes, asked) in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        samples = (
            (f"{part}{i:06d}", {"png": png(pixels), "json": json.dumps(_labels(scenes[i], asked[i])).encode()})
            for i, pixels in enumerate(rendered(rng, scenes, params.image_px))
        )
        write_tar(folder / part / "0.tar", samples)


def _labels(scene: Ints, asked: NDArray[np.bool_]) -> dict[str, str | None]:
    return {
        name: values[scene[column]] if asked[column] else None
        for column, (name, values) in enumerate(ATTRIBUTES.items())
    }


def of_test(scenes: Ints) -> Asked:
    """Which held-out combinations are the probe's test scenes, (n,) bool; the others are those it learns from."""
    return world.is_heldout(scenes) & (world.hashed(scenes) // np.uint64(8) % np.uint64(2) == 1)


def of_train(scenes: Ints) -> Asked:
    """Which combinations the probe learns from, (n,) bool."""
    return world.is_heldout(scenes) & ~of_test(scenes)


def _draw_half(rng: np.random.Generator, n: int, wanted: Callable[[Ints], Asked], *, ball: bool) -> Ints:
    kept = np.zeros((0, len(ATTRIBUTES)), np.int64)
    while len(kept) < n:
        scenes = np.stack([rng.integers(len(values), size=32 * n) for values in ATTRIBUTES.values()], axis=1)
        scenes[:, [COLUMN["count"], COLUMN["position"]] if ball else COLUMN["relation"]] = 0
        scenes = world.canonical(scenes)
        kept = np.concatenate([kept, scenes[wanted(scenes)]])
    return kept[:n]
