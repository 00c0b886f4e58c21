"""The detail battery: edits that do what their statements say, and folders scored together as each alone."""

import csv
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.toy_clips import write_folder
from un2clip.__main__ import main
from un2clip.config import build, read_yaml
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import detail, mmvp_vlm
from un2clip.evaluation.edits import EDITS, Edits, Object, make_edits
from un2clip.hashes import folder_sha256
from un2clip.models.clip import load_clip

NUMBERS = build(Edits, read_yaml(files("un2clip.evaluation") / "edits.yaml"), "edits")


def scene(seed: int, box: tuple[int, int, int, int], size: tuple[int, int] = (80, 60)) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of coloured noise, and its mask: label 1 in the box (left, top, right, bottom)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 255, (size[1], size[0], 3), dtype=np.uint8)
    labels = np.zeros((size[1], size[0]), np.uint8)
    labels[box[1] : box[3], box[0] : box[2]] = 1
    return pixels, labels


def made(kind: str, box: tuple[int, int, int, int], turn: int = 0) -> tuple[list[np.ndarray], list[str], np.ndarray]:
    """Both images of an edit, both statements, and the object's region."""
    pixels, labels = scene(0, box)
    pair = EDITS[kind](Object(pixels=pixels, region=labels == 1, name="dog", turn=turn), NUMBERS)
    assert pair is not None
    return [np.asarray(image) for image, _ in pair], [statement for _, statement in pair], labels == 1


def roughness(image: np.ndarray, region: np.ndarray) -> float:
    """Mean step from a pixel to the one right of it, both in the region."""
    steps = np.abs(np.diff(image.astype(float).mean(axis=2), axis=1))
    return float(steps[region[:, :-1] & region[:, 1:]].mean())


def colourfulness(image: np.ndarray, region: np.ndarray) -> float:
    return float((image.max(axis=2).astype(int) - image.min(axis=2))[region].mean())


def test_only_the_object_changes_its_colour() -> None:
    """What is beside it stays the same to the bit; its strongest channel is the statement's, its brightness stays."""
    for turn in range(len(NUMBERS.colours)):
        images, statements, region = made("colour", (10, 10, 40, 50), turn)
        assert np.array_equal(images[0][~region], images[1][~region])
        original = scene(0, (10, 10, 40, 50))[0]
        for image, statement in zip(images, statements, strict=True):
            assert np.array_equal(image[~region], original[~region])
            red, green, blue = image[region].mean(axis=0)
            strongest = {"red": red > max(green, blue), "green": green > max(red, blue), "blue": blue > max(red, green),
                         "purple": green < min(red, blue)}  # fmt: skip
            assert strongest[statement.split()[1]] and statement.endswith("dog")
            assert np.abs(image[region].max(axis=1).astype(int) - original[region].max(axis=1)).max() <= 1


def test_greyness_and_sharpness_are_where_the_statement_says() -> None:
    """The first image is rough, or colourful, in the object alone, the second beside it alone."""
    for kind, measure in (("greyness", colourfulness), ("sharpness", roughness)):
        images, (first, second), region = made(kind, (10, 10, 40, 50))
        inside, beside = ([measure(image, where) for image in images] for where in (region, ~region))
        assert inside[0] > 4 * inside[1] and beside[1] > 4 * beside[0]
        assert first.startswith(("a colorful dog", "a sharp dog"))
        assert second.startswith(("a black and white dog", "a blurred dog"))


def test_sides_by_hand() -> None:
    """Left and right are mirrored, whichever the photograph shows; upside down is its half turn; near is larger."""
    for box in ((2, 10, 30, 50), (50, 10, 78, 50)):
        (left, right), statements, _ = made("position", box)
        assert statements == ["the dog on the left side", "the dog on the right side"]
        pixels = scene(0, box)[0]
        assert np.array_equal(left, right[:, ::-1]) and np.array_equal(left if box[0] < 40 else right, pixels)
    (up, down), _, _ = made("orientation", (2, 10, 30, 50))
    assert np.array_equal(up[::-1, ::-1], down) and np.array_equal(up, scene(0, (2, 10, 30, 50))[0])
    (near, far), statements, _ = made("distance", (30, 20, 50, 40))
    assert statements == ["a close-up of the dog", "a distant view of the dog"]
    assert max(near.shape) == max(far.shape) == 80
    pixels = scene(0, (30, 20, 50, 40))[0]
    cut = Image.fromarray(pixels).crop((25, 15, 55, 45)).resize((80, 80), Image.Resampling.BICUBIC)
    assert np.array_equal(near, np.asarray(cut)) and np.array_equal(far, pixels)


def test_an_edit_that_would_not_show_is_none() -> None:
    """Dark objects have no colour, grey photographs none to lose, and what fills both halves is on no side."""
    pixels, labels = scene(0, (10, 10, 70, 50))
    seen = Object(pixels=pixels, region=labels == 1, name="dog", turn=0)
    assert EDITS["position"](seen, NUMBERS) is None and EDITS["distance"](seen, NUMBERS) is None
    dark = Object(pixels=pixels // 8, region=labels == 1, name="dog", turn=0)
    assert EDITS["colour"](dark, NUMBERS) is None
    grey = Object(pixels=np.repeat(pixels[..., :1], 3, axis=2), region=labels == 1, name="dog", turn=0)
    assert EDITS["greyness"](grey, NUMBERS) is None


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve photographs with masks, of two objects; one has a name with quotes and a control character."""
    folder = tmp_path / "photographs"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(12):
        pixels, labels = scene(i, ((2, 10, 24, 40), (50, 10, 78, 50), (30, 20, 50, 40))[i % 3])
        Image.fromarray(pixels).save(folder / f"images/{i:02d}.png")
        Image.fromarray(np.where(labels == 1, 1 + i % 2, 0).astype(np.uint8)).save(folder / f"masks/{i:02d}.png")
    (folder / "classes.yaml").write_text('{0: background, 1: dog, 2: "\\"cat\\"\\e\\n=1", 3: bird}\n')
    (folder / "segmentation.yaml").write_text("layout: images_and_masks\n")
    return folder


def test_a_photograph_gives_one_pair(photographs: Path, tmp_path: Path, capsys) -> None:
    """Twelve pairs, two of each kind, all readable as MMVP-VLM's; made again they are the same bytes."""
    assert main(["edits", str(photographs), "--to", str(tmp_path / "a")]) == 0
    assert "12 pairs of 12 photographs" in capsys.readouterr().out
    questions = mmvp_vlm.read_questions(tmp_path / "a")
    assert mmvp_vlm.count(tmp_path / "a") == 12 and [each.id for each in questions] == list(range(1, 25))
    kinds = [left.type for left in questions[::2]]
    assert set(kinds) == set(EDITS) and {kinds.count(kind) for kind in EDITS} == {2}
    assert any('"cat" =1' in each.statement for each in questions)
    make_edits(photographs, tmp_path / "b")
    assert folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b")
    with pytest.raises(UserError, match="b holds files already; delete it"):
        make_edits(photographs, tmp_path / "b")


def test_what_cannot_be_edited_leaves_nothing(photographs: Path, tmp_path: Path) -> None:
    """A broken photograph, a mask of another size, objects that are all too small: a sentence, and no folder."""
    shutil.copytree(photographs, tmp_path / "broken")
    (tmp_path / "broken/images/03.png").write_bytes((photographs / "images/03.png").read_bytes()[:200])
    shutil.copytree(photographs, tmp_path / "other")
    Image.new("L", (8, 8)).save(tmp_path / "other/masks/05.png")
    shutil.copytree(photographs, tmp_path / "small")
    for path in (tmp_path / "small/masks").iterdir():
        Image.new("L", (80, 60)).save(path)
    for name, said in (("broken", "03.png is not a readable image"), ("other", "05.png is 8 x 8"),
                       ("small", "no object covers 3 to 50 % of its photograph")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make_edits(tmp_path / name, tmp_path / "to")
        assert not (tmp_path / "to").exists()


def test_folders_are_scored_as_each_alone(photographs: Path, tmp_path: Path) -> None:
    """Items, types and counts are those of MMVP-VLM's own file on each folder, with the folder's name before them."""
    make_edits(photographs, tmp_path / "detail/edits")
    other = shutil.copytree(tmp_path / "detail/edits", tmp_path / "detail/more")
    rows = list(csv.reader((other / "Questions.csv").open(newline="")))
    with (other / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row[:2] + [f"not {row[2]}"] if row[0].isdigit() else row for row in rows[:9]])
    write_folder(tmp_path / "clip", "gelu")
    clip = load_clip(tmp_path / "clip")
    found = detail.run(clip, tmp_path / "detail", batch_size=5)
    assert found.unit == "%" and found.protocol.endswith("pairs: 12 edits, 4 more")
    expected = [
        (f"{name}/{item.id}", f"{name}/{item.type}", item.value)
        for name in ("edits", "more")
        for item in mmvp_vlm.run(clip, tmp_path / "detail" / name, batch_size=5).items
    ]
    assert [(item.id, item.type, item.value) for item in found.items] == expected
    assert len(expected) == detail.count(tmp_path / "detail") == 16
    assert {item.sample for item in found.items} == {item.id for item in found.items}


def test_a_source_is_a_folder(photographs: Path, tmp_path: Path) -> None:
    """A link's files would not be in the data's hash, and an @ would make one sample of all pairs."""
    make_edits(photographs, tmp_path / "edits")
    (tmp_path / "detail").mkdir()
    with pytest.raises(UserError, match="detail holds no folder; each source of pairs is one"):
        detail.read_sources(tmp_path / "detail")
    (tmp_path / "detail/linked").symlink_to(tmp_path / "edits")
    with pytest.raises(UserError, match="linked: a source of pairs is a folder, no link"):
        detail.read_sources(tmp_path / "detail")
    (tmp_path / "detail/linked").unlink()
    (tmp_path / "detail/a@b").mkdir()
    with pytest.raises(UserError, match="without an @"):
        detail.read_sources(tmp_path / "detail")
