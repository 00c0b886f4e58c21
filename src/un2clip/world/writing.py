"""What is written of the laptop world's scenes, in the layouts of the real data sets.

- image-text tars in webdataset form, as CC3M is distributed;
- pairs in MMVP_VLM's layout, Questions.csv and an image tree: the two images of a pair differ in one attribute (and in
  what no caption tells: background, light, jitter);
- objects x colours in clip-benchmark's webdataset layout;
- held-out scenes alone, to be drawn again;
- four scenes a photograph, with their objects' masks, in PASCAL VOC's layout.

The scenes that attributes are read from are in world/probing.py, and what a language model is asked in world/asking.py.
"""

import csv
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets.shards import EncodedSample
from un2clip.evaluation.dense.masks import palette
from un2clip.world import scenes as world
from un2clip.world.scenes import ATTRIBUTES, COLUMN, Captions, Ints, check_plain

#: MMVP-VLM's nine types, in its order, and the attributes of this world that stand for each.
PATTERNS: dict[str, tuple[str, ...]] = {
    "Orientation": ("orientation",),
    "Presence": ("feature",),
    "State": ("state",),
    "Quantity": ("count",),
    "Spatial": ("position", "relation"),
    "Color": ("colour",),
    "Structural Character": ("texture",),
    "Text": ("glyph",),
    "Camera Perspective": ("distance",),
}
RENDERED_AT_ONCE = 512
FEWEST_ASKED = 9  # attributes that any scene can be asked for: not count and position, or not relation, or orientation
Pixels = NDArray[np.uint8]
TEMPLATES = ("a photo of a {c}.", "a {c}", "one {c}")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The section `shapes.questions` of world.yaml.

    Attributes:
        pictures: of the training half, to train a language model with; 0 for none.
        turns: questions and answers of each of them, each of another attribute; 1 to 9.
        of_each: held-out questions of each attribute in cv_bench, pairs of each in mmvp, groups of each in
            naturalbench and pairs of each subset in pope; 0 for none of the four.
    """

    pictures: int
    turns: int
    of_each: int

    def __post_init__(self) -> None:
        at_least(self, 0, "pictures", "of_each")
        if not 1 <= self.turns <= FEWEST_ASKED:
            raise ValueError(f"turns must be 1 to {FEWEST_ASKED}, got {self.turns}")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The section `shapes` of params.yaml, which says what each number means."""

    image_px: int
    train_scenes: int
    heldout_scenes: int
    pairs_per_type: int
    images_per_class: int
    reconstruction_images: int
    segmentation_images: int
    probe_train_scenes: int
    probe_test_per_attribute: int
    scenes_per_tar: int
    plain: float
    captions: Captions
    questions: Questions

    def __post_init__(self) -> None:
        if not 32 <= self.image_px <= 256:
            raise ValueError(f"image_px must be 32 to 256, got {self.image_px}")
        at_least(self, 1, "train_scenes", "heldout_scenes", "pairs_per_type", "images_per_class")
        at_least(self, 1, "reconstruction_images", "segmentation_images")
        at_least(self, 1, "probe_train_scenes", "probe_test_per_attribute", "scenes_per_tar")
        check_plain(self.plain)


def encode_scenes(rng: np.random.Generator, scenes: Ints, split: str, params: Shapes) -> Iterator[EncodedSample]:
    texts = world.captions(rng, scenes, params.captions)
    for i, pixels in enumerate(rendered(rng, scenes, params.image_px, f"render {split}")):
        metadata = {name: ATTRIBUTES[name][scenes[i, column]] for name, column in COLUMN.items()}
        yield EncodedSample(
            key=f"{split}{i:06d}", image=png(pixels), extension="png", caption=texts[i], metadata=metadata
        )


def rendered(rng: np.random.Generator, scenes: Ints, image_px: int, what: str = "") -> Iterator[Pixels]:
    """The picture of each scene, (image_px, image_px, 3) uint8, some hundred at a time; under a bar called `what`."""
    with tqdm(total=len(scenes), unit="scene", desc=what, mininterval=1, disable=not what) as progress:
        for start in range(0, len(scenes), RENDERED_AT_ONCE):
            for pixels in world.render(rng, scenes[start : start + RENDERED_AT_ONCE], image_px):
                yield pixels
                progress.update()


def draw_pairs(rng: np.random.Generator, attribute: str, n: int, plain: float) -> tuple[Ints, Ints]:
    """Draw n pairs of held-out scenes that differ in `attribute` and, besides, in the background alone."""
    column, background = COLUMN[attribute], COLUMN["background"]
    lefts, rights = (np.zeros((0, len(ATTRIBUTES)), np.int64) for _ in range(2))
    while len(lefts) < n:
        left = world.draw(rng, 64 * n, plain=plain, heldout=True)
        right = left.copy()
        right[:, column] = rng.integers(len(ATTRIBUTES[attribute]), size=len(right))
        right[:, background] = rng.integers(len(ATTRIBUTES["background"]), size=len(right))
        right = world.canonical(right)
        differing = left != right
        differing[:, background] = False
        good = differing[:, column] & (differing.sum(1) == 1) & world.is_heldout(right)
        if ATTRIBUTES[attribute][0] == "none":  # both must have one, so that both statements name it
            good &= (left[:, column] > 0) & (right[:, column] > 0)
        lefts, rights = np.concatenate([lefts, left[good]]), np.concatenate([rights, right[good]])
    return lefts[:n], rights[:n]


def write_pairs(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    question = 1
    with (folder / "Questions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Question ID", "Type", "Statement"])
        for pattern, attributes in PATTERNS.items():
            (folder / "MLLM_VLM Images" / pattern).mkdir(parents=True, exist_ok=True)
            for i, attribute in enumerate(attributes[: params.pairs_per_type]):
                share = len(range(i, params.pairs_per_type, len(attributes)))
                pairs = np.stack(draw_pairs(rng, attribute, share, params.plain), axis=1).reshape(2 * share, -1)
                named = {COLUMN["object"], COLUMN["colour"], COLUMN[attribute]}
                for scene, pixels in zip(pairs, world.render(rng, pairs, params.image_px), strict=True):
                    rows.writerow([question, pattern, world.describe(scene, named)])
                    path = folder / "MLLM_VLM Images" / pattern / f"{question}.jpg"
                    Image.fromarray(pixels).save(path, quality=95, subsampling=0)
                    question += 1


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """Write samples, key and {extension: content}, to the bytes of webdataset's TarWriter, which would import torch."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in sorted(members.items()):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode, info.uname, info.gname = len(content), 0o444, "bigdata", "bigdata"
                tar.addfile(info, io.BytesIO(content))


def write_classes(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    objects, colours = ATTRIBUTES["object"], ATTRIBUTES["colour"]
    names = [f"{colour} {name}" for name in objects for colour in colours]
    scenes, labels = draw_classes(rng, params)
    (folder / "test").mkdir(parents=True, exist_ok=True)
    pictures = enumerate(zip(labels, world.render(rng, scenes, params.image_px), strict=True))
    samples = ((f"{i:06d}", {"png": png(pixels), "cls": f"{label}".encode()}) for i, (label, pixels) in pictures)
    write_tar(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")


def draw_classes(rng: np.random.Generator, params: Shapes) -> tuple[Ints, Ints]:
    """`images_per_class` held-out scenes of every class, in the order of the classes, and their classes' numbers."""
    colours, n = len(ATTRIBUTES["colour"]), params.images_per_class
    classes = range(len(ATTRIBUTES["object"]) * colours)
    scenes, found = np.zeros((0, len(ATTRIBUTES)), np.int64), [np.zeros(0, np.int64)]
    while min(map(len, found)) < n:
        drawn = world.draw(rng, 4 * n * len(classes), plain=params.plain, heldout=True)
        scenes = np.concatenate([scenes, drawn])
        labels = scenes[:, COLUMN["object"]] * colours + scenes[:, COLUMN["colour"]]
        found = [np.flatnonzero(labels == label) for label in classes]
    chosen = np.concatenate([each[:n] for each in found])
    return scenes[chosen], labels[chosen]


def write_pictures(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """Held-out scenes of the world's own distribution, in a tar."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = world.draw(rng, params.reconstruction_images, plain=params.plain, heldout=True)
    pictures = enumerate(rendered(rng, drawn, params.image_px))
    write_tar(folder / "0.tar", ((f"{i:06d}", {"png": png(pixels)}) for i, pixels in pictures))


def write_masks(rng: np.random.Generator, params: Shapes, folder: Path) -> None:
    """VOC2012's layout, and the two files that say so and name the classes.

    A class is an object's colour: patches of the toy CLIP know it, and do not know shapes. There is no background
    class, as in VOC20, because captions seldom tell the background.
    """
    root = folder / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    scenes = world.draw(rng, 4 * params.segmentation_images, plain=params.plain, heldout=True)
    pixels, masks = world.render_with_masks(rng, scenes, params.image_px)
    labels = (masks * (scenes[:, COLUMN["colour"], None, None] + 1)).astype(np.uint8)
    colours = palette(256)
    colours[1 : len(world.RGB) + 1] = world.RGB
    ids = [f"{i:06d}" for i in range(params.segmentation_images)]
    for i, name in enumerate(ids):
        four = slice(4 * i, 4 * i + 4)
        Image.fromarray(_square(pixels[four])).save(root / f"JPEGImages/{name}.jpg", quality=95, subsampling=0)
        mask = Image.fromarray(_square(labels[four]))
        mask.putpalette(colours.tobytes())
        mask.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids) + "\n")
    (folder / "segmentation.yaml").write_text("layout: voc20\n")
    (folder / "classes.txt").write_text("".join(f"{colour} shape\n" for colour in ATTRIBUTES["colour"]))


def _square(tiles: Pixels) -> Pixels:
    """Four pictures of one size (4, S, S, ...) as one, two by two."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (tiles[:2], tiles[2:])])


def png(pixels: Pixels) -> bytes:
    """Pixels (H, W, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
