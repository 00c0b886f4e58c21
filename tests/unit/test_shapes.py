import csv
import dataclasses
import hashlib
import io
import tarfile
from itertools import product

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from tests.conftest import WORLD
from un2clip.config import build
from un2clip.errors import UserError
from un2clip.stages.shapes import Shapes, shapes
from un2clip.world import scenes as world
from un2clip.world.scenes import ATTRIBUTES, COLUMN, Captions
from un2clip.world.writing import PATTERNS, draw_classes, draw_pairs, write_tar


def scene(**values: str) -> np.ndarray:
    """One scene of plain values but for those named."""
    row = [ATTRIBUTES[name].index(values.get(name, ATTRIBUTES[name][0])) for name in ATTRIBUTES]
    return np.array([row])


def picture(seed: int = 0, image_px: int = 64, **values: str) -> np.ndarray:
    return world.render(np.random.default_rng(seed), scene(**values), image_px)[0].astype(int)


def ink(pixels: np.ndarray) -> np.ndarray:
    """Red pixels: where a red object stands on black."""
    return pixels[..., 0] > 120


def test_same_seed_same_bytes() -> None:
    """Scenes, pictures and captions are functions of the seed, and differ between seeds."""

    def made(seed: int) -> str:
        rng = np.random.default_rng(seed)
        scenes = world.draw(rng, 50, plain=0.5, heldout=False)
        texts = world.captions(rng, scenes, Captions(object=1, colour=0.5, detail=0.5, wrong=0.1))
        return hashlib.sha256(
            scenes.tobytes() + world.render(rng, scenes, 32).tobytes() + repr(texts).encode()
        ).hexdigest()

    assert made(3) == made(3) != made(4)


def test_training_and_heldout_share_no_combination() -> None:
    """One combination in eight is held out, and none is drawn from both halves."""
    rng = np.random.default_rng(0)
    train, heldout = (world.draw(rng, 20000, plain=0.5, heldout=flag) for flag in (False, True))
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in heldout}
    every = np.array(list(product(*(range(len(v)) for v in list(ATTRIBUTES.values())[:5]))))
    every = np.pad(every, ((0, 0), (0, len(ATTRIBUTES) - 5)))
    assert world.is_heldout(every).mean() == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("name", [name for name in ATTRIBUTES if name != "relation"])
def test_every_value_of_an_attribute_can_be_seen(name: str) -> None:
    """Two values of an attribute give two pictures, everything drawn at random being equal."""
    pictures = [
        picture(object="arrow", **{name: value}) if name != "object" else picture(object=value)
        for value in ATTRIBUTES[name]
    ]
    for i, left in enumerate(pictures):
        for right in pictures[i + 1 :]:
            assert np.abs(left - right).max() > 60


@pytest.mark.parametrize(
    ("position", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("top", 0, -1), ("bottom", 0, 1)]
)
def test_position_is_where_it_says(position: str, axis: int, sign: int) -> None:
    """The object's centre of mass lies on the side that is named."""
    centre = np.argwhere(ink(picture(position=position))).mean(0)[axis] - 31.5
    assert sign * centre > 6


@pytest.mark.parametrize(
    ("orientation", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)]
)
def test_a_triangle_points_where_it_says(orientation: str, axis: int, sign: int) -> None:
    """The tip is the far end of the thin side: more of the triangle lies opposite to it."""
    points = np.argwhere(ink(picture(object="triangle", orientation=orientation)))[:, axis]
    middle = (points.min() + points.max()) / 2
    assert sign * (points.mean() - middle) < -1


@pytest.mark.parametrize("count", ["one", "two", "three"])
def test_count_is_the_number_of_objects(count: str) -> None:
    """Runs of ink along the middle row are as many as the caption says."""
    row = ink(picture(object="square", count=count)).any(0)
    assert (np.diff(row.astype(int)) == 1).sum() + int(row[0]) == ATTRIBUTES["count"].index(count) + 1


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("above", 0, 1), ("below", 0, -1), ("left", 1, 1), ("right", 1, -1)]
)
def test_the_ball_is_on_the_other_side(relation: str, axis: int, sign: int) -> None:
    """'A circle above a ball': the ball, the only cyan thing, lies below."""
    pixels = picture(relation=relation)
    ball = np.argwhere((pixels[..., 1] > 150) & (pixels[..., 2] > 150) & (pixels[..., 0] < 100))
    assert sign * (ball.mean(0)[axis] - 31.5) > 10


def test_captions_name_as_often_as_asked() -> None:
    """The share of captions with a word of an attribute is its probability, within four standard errors."""
    rng = np.random.default_rng(0)
    scenes = world.draw(rng, 5000, plain=0.5, heldout=False)
    texts = world.captions(rng, scenes, Captions(object=0.9, colour=0.6, detail=0.2, wrong=0))
    for name, chance in (("object", 0.9), ("colour", 0.6), ("background", 0.2)):
        share = np.mean([any(word in text for word in ATTRIBUTES[name]) for text in texts])
        assert share == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 5000))
    hollow = scenes[:, COLUMN["state"]] == 1
    assert not any("solid" in text for text, is_hollow in zip(texts, hollow, strict=True) if is_hollow)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "one smooth"),
        ({"object": "arrow", "orientation": "left"}, "pointing left"),
        ({"object": "cross", "count": "three"}, "three solid red crosses"),
        ({"glyph": "T"}, "and the letter T"),
        ({"relation": "left"}, "left of a ball"),
    ],
)
def test_description_of_everything(values: dict[str, str], text: str) -> None:
    """A full description names the value that the scene has."""
    said = world.describe(scene(**values)[0], set(range(len(ATTRIBUTES))))
    assert text.replace("one smooth", "one solid red circle without a dot") in said


def test_pairs_differ_in_one_attribute() -> None:
    """Two scenes of a pair differ in the attribute and besides in the background alone, and both are held out."""
    for attributes in PATTERNS.values():
        for name in attributes:
            left, right = draw_pairs(np.random.default_rng(0), name, 30, plain=0.5)
            differing = left != right
            assert differing[:, COLUMN[name]].all()
            differing[:, [COLUMN[name], COLUMN["background"]]] = False
            assert not differing.any()
            assert world.is_heldout(left).all() and world.is_heldout(right).all()


def test_layouts_of_the_real_data_sets(tiny) -> None:
    """MMVP_VLM: header, nine types, consecutive ids, an image each. clip-benchmark: every class, png and cls."""
    folder = tiny.benchmarks / "mmvp_vlm"
    rows = list(csv.reader((folder / "Questions.csv").open()))
    assert rows[0] == ["Question ID", "Type", "Statement"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 2 * 9 * 4 + 1))
    assert list(dict.fromkeys(row[1] for row in rows[1:])) == list(PATTERNS)
    for number, kind, _ in rows[1:]:
        assert Image.open(folder / "MLLM_VLM Images" / kind / f"{number}.jpg").size == (32, 32)
    for left, right in zip(rows[1::2], rows[2::2], strict=True):
        assert left[1] == right[1] and left[2] != right[2]
    folder = tiny.benchmarks / "zeroshot"
    found = list(wds.WebDataset(str(folder / "test/0.tar"), shardshuffle=False))
    assert sorted(int(sample["cls"]) for sample in found) == list(range(36))
    assert len((folder / "classnames.txt").read_text().splitlines()) == 36
    assert (folder / "test/nshards.txt").read_text().strip() == "1"
    folder = tiny.benchmarks / "segmentation/VOC2012"
    ids = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
    assert len(ids) == 3
    for name in ids:
        image, mask = (
            Image.open(folder / f"JPEGImages/{name}.jpg"),
            Image.open(folder / f"SegmentationClass/{name}.png"),
        )
        assert image.size == mask.size == (64, 64) and mask.mode == "P"
        assert set(np.unique(np.asarray(mask))) <= set(range(7))


def test_a_tar_is_as_webdataset_writes_it(tmp_path) -> None:
    """Byte for byte, of contents on both sides of a block."""
    sizes = {"000000": 0, "000001": 511, "000002": 512, "000003": 20_000}
    samples = [(key, {"png": bytes([7]) * size, "cls": b"3", "json": b"{}"}) for key, size in sizes.items()]
    write_tar(tmp_path / "ours.tar", samples)
    with wds.TarWriter(str(tmp_path / "theirs.tar"), mtime=0) as tar:
        for key, members in samples:
            tar.write({"__key__": key} | members)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"state": "hollow"},
        {"count": "three"},
        {"relation": "left"},
        {"glyph": "L", "position": "top", "count": "three"},
    ],
)
@pytest.mark.parametrize("name", ATTRIBUTES["object"])
def test_masks_are_where_the_objects_are(name: str, changes: dict[str, str]) -> None:
    """Of a pixel in the mask the object's colour shows, of one outside the background's; rims are shared."""

    def change(**two: tuple[str, str]) -> np.ndarray:
        (attribute, values), *_ = two.items()
        first, second = (
            picture(3, **{"object": name, "colour": "green", "background": "black"} | changes | {attribute: value})
            for value in values
        )
        return np.abs(first - second).sum(-1)

    rows = scene(object=name, colour="green", **changes)
    mask = world.render_with_masks(np.random.default_rng(3), rows, 64)[1][0]
    objects = change(colour=("green", "purple")) / 380  # the sum over the channels of the two colours' difference
    background = change(background=("black", "grey")) / 285
    share = objects / np.maximum(objects + background, 1e-9)  # the light on the scene divides out
    assert mask[share > 0.6].all() and not mask[share < 0.4].any()
    assert 30 < mask.sum() < 64 * 64 / 2 and ((share > 0.4) & (share < 0.6)).sum() < 0.25 * mask.sum()


def test_a_letter_covers_its_object() -> None:
    """Where a letter is written on an object, and it sometimes is, the mask has a hole of the letter's form."""
    rows = world.draw(np.random.default_rng(0), 400, plain=0.5, heldout=True)
    found = []
    for letter in ("none", "L"):
        rows[:, COLUMN["glyph"]] = ATTRIBUTES["glyph"].index(letter)
        found.append(world.render_with_masks(np.random.default_rng(1), rows, 32))
    (plain, whole), (written, holed) = found
    assert np.array_equal(holed, whole & (plain == written).all(-1)) and (holed != whole).any()


def test_a_dot_belongs_to_its_object() -> None:
    """The dot in a hollow circle counts, the hollow does not, and the pictures are those of `render`."""
    rows = scene(object="circle", state="hollow", feature="dotted")
    pixels, masks = world.render_with_masks(np.random.default_rng(3), rows, 64)
    assert np.array_equal(pixels, world.render(np.random.default_rng(3), rows, 64))
    white = (pixels[0] > 220).all(-1)
    assert white.sum() > 20 and masks[0][white].all()
    assert masks.sum() < world.render_with_masks(np.random.default_rng(3), scene(object="circle"), 64)[1].sum()


def test_tars_are_what_cc3m_tars_are(tiny) -> None:
    """Each sample of the training tars is png + txt + json, and the text is a caption."""
    with tarfile.open(min((tiny.images / "train").glob("*.tar"))) as tar:
        names = tar.getnames()
        assert names[:3] == ["train000000.json", "train000000.png", "train000000.txt"]
        assert Image.open(io.BytesIO(tar.extractfile(names[1]).read())).size == (32, 32)


def test_every_class_has_its_images(tiny) -> None:
    """Few images a class, many seeds: a class that the first draw leaves short is filled by the next."""
    params = dataclasses.replace(tiny.section(Shapes, "shapes"), images_per_class=1)
    for seed in range(20):
        scenes, labels = draw_classes(np.random.default_rng(seed), params)
        assert labels.tolist() == list(range(36)) and world.is_heldout(scenes).all()
        assert (scenes[:, COLUMN["object"]] * 6 + scenes[:, COLUMN["colour"]]).tolist() == labels.tolist()


@pytest.mark.parametrize(("name", "value"), [("image_px", 16), ("pairs_per_type", 0), ("plain", 1.0)])
def test_bad_numbers_are_refused(tiny, name: str, value: float) -> None:
    """The message names the parameter and the value."""
    with pytest.raises(UserError, match=f"shapes.{name} .*got {value}"):
        build(Shapes, tiny.params["shapes"] | {name: value}, "shapes")


def test_seed_decides_the_bytes_of_the_stage(tiny, tmp_path) -> None:
    """The stage run again with its seed writes the same bytes in every file."""
    shapes(tiny.section(Shapes, "shapes"), seed=1, **{name: tmp_path / name for name in WORLD})
    for made, again in ((getattr(tiny, name), tmp_path / name) for name in WORLD):
        files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
        assert files and files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        assert all((made / name).read_bytes() == (again / name).read_bytes() for name in files)
