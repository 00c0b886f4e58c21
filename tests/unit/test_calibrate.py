"""Calibration: the published table adds up, and no count may differ before pairs are called MMVP-VLM."""

import dataclasses
import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from un2clip.__main__ import main
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import mmvp_vlm
from un2clip.evaluation.calibrate import Published, calibrate, count_of, published
from un2clip.evaluation.calibration import is_calibrated
from un2clip.hashes import file_sha256
from un2clip.models.clip import load_clip
from un2clip.models.converting import architecture_config

ROOT = Path(__file__).parents[2]
TABLE = yaml.safe_load((files("un2clip.evaluation") / "mmvp_vlm.yaml").read_text())


@pytest.mark.parametrize("model", TABLE["models"])
def test_the_published_counts_add_up_to_the_published_average(model):
    """Nine counts of 15, turned back from one decimal, give the printed average of 135."""
    known = published(model)
    assert len(known.right) == 9 and known.pairs == 15
    assert round(100 * sum(known.right.values()) / 135, 1) == TABLE["models"][model]["average"]


def test_openai_l_224_by_hand():
    """19.3 % is 26 of 135."""
    assert published("openai-vit-l-14-224").right == {
        "Orientation": 2, "Presence": 2, "State": 3, "Quantity": 3, "Spatial": 2,
        "Color": 8, "Structural Character": 3, "Text": 1, "Camera Perspective": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("percent", "count"), [(0.0, 0), (6.7, 1), (13.3, 2), (93.3, 14), (100.0, 15)])
def test_counts_from_percentages(percent, count):
    """Steps of 15 pairs."""
    assert count_of(percent, 15) == count


@pytest.mark.parametrize("percent", [6.6, 13.0, 19.3, 50.0])
def test_a_percentage_of_other_pairs_is_refused(percent):
    """What 15 pairs cannot give was not measured on 15 pairs."""
    with pytest.raises(ValueError, match="no whole number of 15 pairs"):
        count_of(percent, 15)


def test_an_unknown_model_lists_the_known():
    """The names are said."""
    with pytest.raises(UserError, match="no published counts of 'clip'; there are those of openai-vit-l-14-224"):
        published("clip")


@pytest.fixture
def data(tiny, tmp_path):
    return shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / "mmvp_vlm")


@pytest.fixture
def recorded(tiny, data):
    """What the tiny CLIP reaches on the tiny world: four pairs a type."""
    items = score(tiny, data).items
    names = dict.fromkeys(item.type for item in items)
    right = {name: sum(int(item.value) for item in items if item.type == name) for name in names}
    return Published(model="tiny", pairs=4, right=right)


def score(tiny, data):
    return mmvp_vlm.run(load_clip(tiny.backbones / "clip"), data, batch_size=16)


def run(tiny, known, data):
    return calibrate(known, data=data, clip=tiny.backbones / "clip", device="cpu", batch_size=16)


def test_passes_on_the_recorded_counts_and_only_then_the_name(tiny, data, recorded):
    """Before, the scores are called pairs in the layout; after, MMVP-VLM; with one more byte of data, pairs again."""
    assert score(tiny, data).protocol.startswith("pairs in MMVP-VLM's layout, not calibrated; ")
    record = run(tiny, recorded, data)
    assert record.passed and record.right == recorded.right
    assert json.loads((data.parent / "mmvp_vlm.calibration.tiny.json").read_text()) == dataclasses.asdict(record)
    protocol = score(tiny, data).protocol
    assert protocol.startswith("MMVP-VLM; ")
    assert protocol.endswith(f"; Questions.csv {file_sha256(data / 'Questions.csv')[:12]}")
    (data / "LICENSE").write_text("MIT")
    assert score(tiny, data).protocol.startswith("pairs in MMVP-VLM's layout, not calibrated; ")


@pytest.mark.parametrize("name", ["Orientation", "Camera Perspective"])
@pytest.mark.parametrize("by", [1, -1])
def test_one_count_off_fails_by_name(tiny, data, recorded, name, by):
    """A single pair in one type is enough; the message has the type, what was got and what was published."""
    right = recorded.right | {name: recorded.right[name] + by}
    message = f": {name} {recorded.right[name]} right, published {right[name]}; in all "
    with pytest.raises(UserError, match=message):
        run(tiny, dataclasses.replace(recorded, right=right), data)
    assert json.loads((data.parent / "mmvp_vlm.calibration.tiny.json").read_text())["passed"] is False
    assert not is_calibrated(data)


def test_the_laptop_world_is_never_the_real_one(tiny, data, tmp_path, monkeypatch, capsys):
    """The command, against real published counts: the number of pairs alone gives the laptop world away."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny.params))
    clip = tiny.backbones / "clip"
    assert main(["calibrate", "openai-vit-l-14-224", f"--data={data}", f"--clip={clip}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Orientation 4 pairs, published 15; Presence 4 pairs" in said
    assert not list(data.parent.glob("*.calibration.*")), "the folder is an output of DVC's"


def test_types_of_another_name(tiny, data, recorded):
    """An underscore is a space, as the published folders are also spelt; a type too many or too few is named."""
    path, tree = data / "Questions.csv", data / "MLLM_VLM Images"
    path.write_text(path.read_text().replace("Camera Perspective", "Camera_Perspective"))
    (tree / "Camera Perspective").rename(tree / "Camera_Perspective")
    assert run(tiny, recorded, data).passed
    path.write_text(path.read_text().replace(",Color,", ",Colour,"))
    (tree / "Color").rename(tree / "Colour")
    with pytest.raises(UserError, match="Color 0 pairs, published 4; Colour 4 pairs, published 0$"):
        run(tiny, recorded, data)


def test_a_record_that_is_no_record(tiny, data):
    """A broken file beside the data is named; JSON of another kind calibrates nothing."""
    path = data.parent / "mmvp_vlm.calibration.x.json"
    path.write_text("[]")
    assert not is_calibrated(data)
    path.write_text("{")
    with pytest.raises(UserError, match="is not a calibration record"):
        is_calibrated(data)


@pytest.mark.parametrize("model", TABLE["models"])
def test_the_page_has_the_same_counts(model):
    """docs/reproduce.md restates the table; both are equal, and open_clip knows the architecture at that size."""
    page = (ROOT / "docs/reproduce.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {model} |"))
    counts = list(published(model).right.values())
    architecture, average = TABLE["models"][model]["architecture"], TABLE["models"][model]["average"]
    cells = [model, architecture, " ".join(map(str, counts)), str(sum(counts)), str(average)]
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells
    assert architecture_config(architecture)["model_cfg"]["vision_cfg"]["image_size"] == int(model.rpartition("-")[2])
