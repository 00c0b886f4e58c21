"""SugarCrepe: clip-benchmark's reader and metric are the oracle."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import sugarcrepe
from un2clip.evaluation.benchmarks.sugarcrepe import read_rows
from un2clip.models.clip import load_clip

REAL = Path(__file__).parents[3] / "shared/realdata"


@pytest.fixture
def folder(tiny, tmp_path):
    """The published layout: two of the seven files, 12 and 5 rows over six images, keys with gaps."""
    images = sorted((tiny.benchmarks / "mmvp_vlm").rglob("*.jpg"))[:6]
    (tmp_path / "s/val2017").mkdir(parents=True)
    for image in images:
        shutil.copy(image, tmp_path / "s/val2017")
    for name, n in (("swap_obj", 5), ("add_att", 12)):
        rows = {str(3 * i): row(images[i % 6].name, f"a red {i}", f"a blue {name} {i}") for i in range(n)}
        (tmp_path / f"s/{name}.json").write_text(json.dumps(rows))
    return tmp_path / "s"


def row(filename, caption, negative_caption, **more):
    return {"filename": filename, "caption": caption, "negative_caption": negative_caption} | more


def run(tiny, folder, batch_size=4):
    return sugarcrepe.run(load_clip(tiny.backbones / "clip"), folder, batch_size=batch_size).items


def test_equals_clip_benchmarks_own_accuracy(tiny, folder, clip_benchmark):
    """Each file's score is clip-benchmark's text_acc, read by its own reader."""
    collate = clip_benchmark("datasets.builder").image_captions_collate_fn
    metric = clip_benchmark("metrics.image_caption_selection")
    clip, items = load_clip(tiny.backbones / "clip"), run(tiny, folder)
    assert Counter(item.type for item in items) == {"add_att": 12, "swap_obj": 5}
    for name in ("add_att", "swap_obj"):
        reader = clip_benchmark("datasets.sugar_crepe").SugarCrepe
        data = reader(folder / "val2017", folder / f"{name}.json", transform=clip.preprocess)
        loader = DataLoader(data, batch_size=3, collate_fn=collate)
        theirs = metric.evaluate(clip.model, loader, clip.tokenize, "cpu", amp=False)["text_acc"]
        mine = [item.value for item in items if item.type == name]
        assert sum(mine) / len(mine) == pytest.approx(theirs, abs=1e-6)
    assert {item.value for item in items} == {0.0, 1.0}
    assert len({item.id for item in items}) == 17 and len({item.sample for item in items}) == 6


def test_changing_places_turns_every_outcome(tiny, folder):
    """A caption that wins loses as the negative; a caption against itself is a tie, and wrong."""
    before = run(tiny, folder)
    for file in folder.glob("*.json"):
        rows = json.loads(file.read_text())
        turned = {key: row(r["filename"], r["negative_caption"], r["caption"]) for key, r in rows.items()}
        file.write_text(json.dumps(turned))
    assert [item.value for item in run(tiny, folder)] == [1.0 - item.value for item in before]
    for file in folder.glob("*.json"):
        same = {key: row(r["filename"], r["caption"], r["caption"]) for key, r in json.loads(file.read_text()).items()}
        file.write_text(json.dumps(same))
    assert {item.value for item in run(tiny, folder)} == {0.0}


def test_both_layouts_give_the_same_outcomes(tiny, folder):
    """One list whose rows name their types is the same set as a file a type; so is a folder called images."""
    before = run(tiny, folder)
    rows = [r | {"type": f.stem} for f in sorted(folder.glob("*.json")) for r in json.loads(f.read_text()).values()]
    for file in folder.glob("*.json"):
        file.unlink()
    (folder / "all.json").write_text(json.dumps(rows))
    (folder / "val2017").rename(folder / "images")
    after = run(tiny, folder, 1000)
    assert [(i.type, i.value, i.sample) for i in after] == [(i.type, i.value, i.sample) for i in before]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "add_att.json is not valid JSON"),
        ("3", "must be a mapping or a list of rows, got int"),
        ('{"7": "x"}', "add_att.json, row 7: needs filename, caption and negative_caption"),
        (json.dumps([row("1.jpg", "a", "")]), "add_att.json, row 0: needs"),
        (json.dumps([row("1.jpg", "a", 3)]), "add_att.json, row 0: needs"),
        (json.dumps([row("none.jpg", "a", "b")]), "add_att.json, row 0: no image .*val2017/none.jpg"),
        (json.dumps([row("../swap_obj.json", "a", "b")]), "add_att.json, row 0: no image"),
        ("[]", "has no row"),
    ],
)
def test_a_broken_row_is_named(folder, content, message):
    """Each fault is a UserError that says where, before anything is computed."""
    (folder / "swap_obj.json").write_text("{}")
    (folder / "add_att.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows(folder)


def test_missing_images_folder_is_named(folder):
    """The two names are said."""
    (folder / "val2017").rename(folder / "photos")
    with pytest.raises(UserError, match="a folder named val2017 or images"):
        read_rows(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/realdata (148 rows of SugarCrepe and their photographs)")
def test_real_rows(tiny, tmp_path):
    """The 148 rows on COCO photographs, of seven types."""
    (tmp_path / "images").mkdir()
    for path in sorted(REAL.glob("coco-open-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    (tmp_path / "images" / member.name).write_bytes(tar.extractfile(member).read())
    shutil.copy(REAL / "sugarcrepe_open.json", tmp_path)
    items = run(tiny, tmp_path, 32)
    assert len(items) == 148
    assert len({item.type for item in items}) == 7
