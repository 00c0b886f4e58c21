"""What is written under the pictures: what a CLIP says of a scene, and what it says otherwise."""

import numpy as np
import torch
from torch.nn.functional import normalize

from un2clip.datasets.random_access import metadata_of
from un2clip.datasets.shards import read_index
from un2clip.models.clip import load_clip
from un2clip.world.naming import changes, say, scene_of
from un2clip.world.scenes import ATTRIBUTES, COLUMN, describe

PLAIN = np.array([0] * len(ATTRIBUTES))


def scene(**values: str) -> np.ndarray:
    """A plain red circle, but for these values."""
    row = PLAIN.copy()
    for name, value in values.items():
        row[COLUMN[name]] = ATTRIBUTES[name].index(value)
    return row


def test_a_scene_is_read_from_its_metadata(tiny) -> None:
    """Every held-out sample of the laptop world has one; another world's metadata are none."""
    found = list(metadata_of(tiny.shards, "heldout"))
    assert len(found) == read_index(tiny.shards).count("heldout")
    for each in found[:5]:
        row = scene_of(each)
        assert {name: values[row[COLUMN[name]]] for name, values in ATTRIBUTES.items()} == each
    assert scene_of({}) is None and scene_of(found[0] | {"object": "dog"}) is None


def test_the_nearest_statement_is_what_is_said(tiny) -> None:
    """By hand for two attributes, against cosines of every statement; what cannot be seen is not asked for."""
    clip = load_clip(tiny.backbones / "clip")
    pixel_values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    row = scene(object="arrow", count="two")
    (said,) = say(clip, pixel_values, [row])
    image = normalize(clip.embed(pixel_values), dim=1)[0]
    for name in ("count", "orientation"):
        words = {COLUMN["object"], COLUMN["colour"], COLUMN[name]}
        rows = [scene(**({"object": "arrow", "count": "two"} | {name: value})) for value in ATTRIBUTES[name]]
        texts = normalize(clip.embed_texts([describe(each, words) for each in rows]), dim=1)
        assert said[name] == ATTRIBUTES[name][int((texts @ image).argmax())]
    assert "relation" not in said, "a ball stands beside one object in the centre alone"
    assert "orientation" not in say(clip, pixel_values, [scene(object="circle")])[0], "a circle points nowhere"


def test_changes_are_marked_by_the_truth() -> None:
    """One attribute now right, one now wrong, one as before."""
    before = {"count": "one", "position": "left", "state": "solid"}
    after = {"count": "two", "position": "top", "state": "solid"}
    assert changes(before, after, scene(count="two", position="left")) == ["count: two ✓", "position: top ✗"]
