"""The benchmark `probe`: scikit-learn on features by open_clip's own call is the oracle."""

import csv
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from tests.toy_clips import PREPROCESS_CFG, write_folder
from un2clip.cluster.artifacts import describe, scores_of
from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import probe
from un2clip.evaluation.benchmarks.probe import Options
from un2clip.evidence.report import compare_scores
from un2clip.evidence.scores import collect_scores
from un2clip.models.clip import Clip, load_clip
from un2clip.stages import run_stage
from un2clip.world import scenes as world
from un2clip.world.probing import draw_asked, draw_balanced, of_train
from un2clip.world.scenes import ATTRIBUTES, COLUMN

NAMES = list(ATTRIBUTES)


def options(tiny, **changes) -> Options:
    return build(Options, tiny.params["evaluate"]["probe"] | changes, "evaluate.probe")


@pytest.fixture
def run(tiny):
    clip = load_clip(tiny.backbones / "clip")
    return lambda folder, **changes: probe.run(clip, folder, batch_size=16, options=options(tiny, **changes))


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny.benchmarks / "probe", tmp_path / "probe")


def read(tar: Path) -> list[tuple[str, Image.Image, dict]]:
    """Key, image and labels of a tar by the standard library."""
    with tarfile.open(tar) as file:
        members = {member.name: file.extractfile(member).read() for member in file}
    keys = list(dict.fromkeys(name.partition(".")[0] for name in members))
    return [(key, Image.open(io.BytesIO(members[f"{key}.png"])), json.loads(members[f"{key}.json"])) for key in keys]


def write(folder: Path, part: str, samples: list[tuple[str, Image.Image, object]]) -> None:
    (folder / part).mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / part / "0.tar", "w") as tar:
        for key, image, labels in samples:
            buffer = io.BytesIO()
            image.save(buffer, "png")
            text = labels if isinstance(labels, bytes) else json.dumps(labels).encode()
            for name, content in ((f"{key}.png", buffer.getvalue()), (f"{key}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def by_scikit_learn(clip: Clip, folder: Path, penalties: tuple[float, ...], tokens: bool) -> dict[str, float]:
    """Every outcome: an attribute at a time, features of one image at a time."""

    def features(image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            given = clip.model.visual.forward_intermediates(
                clip.preprocess(image.convert("RGB"))[None], indices=1, output_fmt="NLC", normalize_intermediates=True
            )
        found = given["image_intermediates"][0][0].T.flatten() if tokens else given["image_features"][0]
        return found.double().numpy()

    train, test = (
        [(key, features(image), labels) for key, image, labels in read(folder / part / "0.tar")]
        for part in ("train", "test")
    )
    found = {}
    for name in NAMES:
        rows, asked = ([row for row in part if row[2][name] is not None] for part in (train, test))
        known = sorted({labels[name] for _, _, labels in rows})
        x, wanted = (np.stack([row[1] for row in part]) for part in (rows, asked))
        hot = np.array([[labels[name] == value for value in known] for _, _, labels in rows], np.float64)
        scaler = StandardScaler().fit(x)
        outputs = RidgeCV(penalties).fit(scaler.transform(x), hot).predict(scaler.transform(wanted))
        for (key, _, labels), best in zip(asked, outputs.argmax(1), strict=True):
            found[f"{key}@{name}"] = float(known[best] == labels[name])
    return found


def test_equals_scikit_learn(tiny, run) -> None:
    """Each outcome of both features, the tokens in any order of their numbers; the embedding gives the score."""
    folder, clip = tiny.benchmarks / "probe", load_clip(tiny.backbones / "clip")
    result = run(folder)
    (tokens,) = result.also.values()
    for mine, of_tokens in ((result, False), (tokens, True)):
        expected = by_scikit_learn(clip, folder, options(tiny).penalties, of_tokens)
        assert {item.id: item.value for item in mine.items} == expected
        assert Counter(item.type for item in mine.items) == dict.fromkeys(NAMES, 30)
        assert list(dict.fromkeys(item.type for item in mine.items)) == NAMES
    assert result.items != tokens.items and 0 < sum(item.value for item in result.items) < len(result.items)


def test_the_protocol_tells_what_guessing_gives(run, tiny) -> None:
    """Chance is what always saying the most common training value gets right in the test, counted in the tars."""
    said = run(tiny.benchmarks / "probe").protocol
    train, test = (read(tiny.benchmarks / f"probe/{part}/0.tar") for part in ("train", "test"))
    for name in NAMES:
        most = Counter(labels[name] for _, _, labels in train if labels[name] is not None).most_common(1)[0][0]
        assert f"{name} {100 * sum(labels[name] == most for _, _, labels in test) / 30:.1f}" in said
    assert said.startswith("pooled embedding; ")


def test_only_the_embedding(tiny, run) -> None:
    """grid 0 asks the tower for no tokens, and gives the same outcomes of the embedding."""
    folder = tiny.benchmarks / "probe"
    assert run(folder, grid=0).also == {} and run(folder, grid=0).items == run(folder).items
    coarse = run(folder, grid=2)
    assert coarse.items == run(folder).items and coarse.also["tokens"] != run(folder).also["tokens"]


def test_the_stage_writes_both_scores(tiny, tmp_path) -> None:
    """By the one door of all stages, twice the same bytes; the report has two benchmarks, Kubeflow both scores."""
    names = {"benchmark": "probe", "device": "cpu", "benchmarks": tiny.benchmarks, "backbones": tiny.backbones}
    names["checkpoints"] = ""
    for scores in ("first", "second"):
        run_stage(
            "evaluate", tiny.params["evaluate"], **names, encoder=tiny.backbones / "clip", scores=tmp_path / scores
        )
    made = sorted(path.relative_to(tmp_path / "first").as_posix() for path in (tmp_path / "first").rglob("*.json"))
    assert made == ["probe-tokens/reference.json", "probe-tokens/tuned.json", "reference.json", "tuned.json"]
    for name in made:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    found = collect_scores([tmp_path / "first"])
    assert list(found) == ["probe", "probe-tokens"]
    for pair in found.values():
        report = compare_scores(pair["reference"], pair["tuned"], confidence=0.95, resamples=50, power=0.8, seed=0)
        assert report.whole.difference.changed == 0 and [row.type for row in report.types] == NAMES
        mean = np.mean([row.reference for row in report.types])
        assert report.whole.reference == pytest.approx(mean), "as many items an attribute"
    assert list(scores_of(str(tmp_path / "first"))) == [
        "probe-tokens reference", "probe-tokens tuned", "probe reference", "probe tuned",
    ]  # fmt: skip
    assert describe("scores", str(tmp_path / "first"))["benchmark"] == "probe"


def test_your_own_images_with_a_table(tiny, run, copy) -> None:
    """Hugging Face's ImageFolder, metadata.csv beside the images, gives the outcomes of the tars."""
    for part in ("train", "test"):
        samples = read(copy / part / "0.tar")
        (copy / part / "0.tar").unlink()
        (copy / part / "deep").mkdir()
        with (copy / part / "metadata.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, [NAMES[0], "file_name", *NAMES[1:]])
            rows.writeheader()
            for key, image, labels in samples:
                image.save(copy / part / f"deep/{key}.png")
                rows.writerow({"file_name": f"deep/{key}.png"} | labels)
    mine, theirs = run(copy), run(tiny.benchmarks / "probe")
    outcomes = {item.id.removeprefix("deep/").replace(".png", ""): item.value for item in mine.items}
    assert outcomes == {item.id: item.value for item in theirs.items}
    assert [item.sample for item in mine.items[:1]] == ["deep/test000000.png"]


GREY, RED = Image.new("RGB", (32, 32), "grey"), Image.new("RGB", (32, 32), "red")
TWO = [("a", GREY, {"x": "1"}), ("b", RED, {"x": "2"})]


def test_labels_may_be_whole_numbers(run, tmp_path) -> None:
    """1 in JSON is the class 1; the two pictures, learned, are known again."""
    write(tmp_path, "train", [("a", GREY, {"x": 1}), ("b", RED, {"x": 2}), ("c", RED, {"x": 2})])
    write(tmp_path, "test", TWO)
    assert [(item.id, item.value) for item in run(tmp_path).items] == [("a@x", 1.0), ("b@x", 1.0)]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, TWO, r"train must hold either \*\.tar.* or metadata\.csv beside its images"),
        ([], TWO, "train holds no images"),
        (TWO, [], "test holds no images"),
        ([("a", GREY, {"x": "1"})], TWO, "in train x is always 1; there is nothing to tell apart"),
        (TWO, [("a", GREY, {"x": "3"})], "in test x is '3', which no training image shows"),
        (TWO, [("a", GREY, {"y": "1"})], "no image of test has a label of x"),
        ([("a", GREY, {"x": None})], TWO, "no image of train has a label of x"),
        ([("a", GREY, {})], [("a", GREY, {})], "its images have no attributes; nothing is to be read"),
        ([("a", GREY, {"x": 0.5})], TWO, "sample a: a label is a text or a whole number .* got x: 0.5"),
        ([("a", GREY, {"x": {"y": 1}})], TWO, "sample a: a label is a text or a whole number"),
        ([("a", GREY, {"x@y": "1"})], TWO, "attribute without @; got x@y: '1'"),
        ([("a", GREY, ["x"])], TWO, "sample a: its .json must be a mapping"),
        ([("a", GREY, b"{")], TWO, "sample a: its .json is not valid JSON"),
        ([("a", GREY, b"[" * 100_000)], TWO, "sample a: its .json is nested deeper"),
        ([*TWO, ("b", RED, {"x": "1"})], TWO, "sample b occurs twice"),
    ],
)
def test_bad_data_are_named(run, tmp_path, train, test, message: str) -> None:
    """One sentence that says what is wrong; nothing is skipped."""
    for part, samples in (("train", train), ("test", test)):
        if samples is not None:
            write(tmp_path, part, samples)
    with pytest.raises(UserError, match=message):
        run(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"image,x\na.png,1\n", r"metadata\.csv must have the columns file_name, each once; got \['image', 'x'\]"),
        (b"", r"must have the columns file_name, each once; got \[\]"),
        (b"file_name,x\na.png,1,2\n", "line 2: need 2 values"),
        (b"file_name,x\n../a.png,1\n", r"line 2: file_name must name an image below .* got '\.\./a\.png'"),
        (b"file_name,x\n/etc/hosts,1\n", "line 2: file_name must name"),
        (b"file_name,x\na.png,1\na.png,2\n", "line 3: file_name must name an image below its folder, each once"),
        (b"file_name,x\n,1\n", "line 2: file_name must name"),
        (b"file_name,x\nb.png,1\n", r"line 2: b\.png does not exist"),
        (b"file_name,x\na.png,\xff\n", "line 2 is not UTF-8"),
        (b'file_name,x\na.png,"' + b"1" * 200_000 + b'"\n', "line 2: field larger"),
    ],
)
def test_a_bad_table_is_named(run, tmp_path, table: bytes, message: str) -> None:
    """Where it is wrong, by line; no path leads out of the folder."""
    (tmp_path / "probe/train").mkdir(parents=True)
    for path in (tmp_path / "a.png", tmp_path / "probe/train/a.png"):
        GREY.save(path)
    (tmp_path / "probe/train/metadata.csv").write_bytes(table)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "probe")


def test_both_layouts_at_once_are_refused(run, copy) -> None:
    """Which of the two is meant cannot be told."""
    (copy / "test/metadata.csv").write_text("file_name,x\n")
    with pytest.raises(UserError, match=r"test must hold either"):
        run(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 0}, "evaluate.probe.layer counts from the end, -1 is the last block; got 0"),
        ({"grid": -1}, "evaluate.probe.grid must be at least 0, got -1"),
        ({"penalties": []}, "evaluate.probe.penalties must be positive, at least one"),
        ({"penalties": [1.0, 0.0]}, "evaluate.probe.penalties must be positive"),
    ],
)
def test_bad_numbers_are_refused(tiny, changes: dict, message: str) -> None:
    """The message names the number."""
    with pytest.raises(UserError, match=message):
        options(tiny, **changes)


@pytest.mark.parametrize("family", ["gelu", "siglip"])
def test_towers_of_both_kinds_have_tokens(tiny, tmp_path, family: str) -> None:
    """open_clip's own and timm's: 16 tokens of every layer that there is, and of no other."""
    write_folder(tmp_path / "clip", family)
    clip, folder = load_clip(tmp_path / "clip"), tiny.benchmarks / "probe"
    results = [probe.run(clip, folder, batch_size=32, options=options(tiny, layer=layer)) for layer in (-1, -2)]
    assert results[0].items == results[1].items
    assert results[0].also["tokens"].items != results[1].also["tokens"].items
    assert results[1].also["tokens"].protocol.startswith("patch tokens of layer -2, at most 4 a side; ")
    with pytest.raises(UserError, match=r"has 2 blocks, and none is layer -3; with evaluate\.probe\.grid 0"):
        probe.run(clip, folder, batch_size=32, options=options(tiny, layer=-3))


def test_a_resnet_has_no_tokens(tiny) -> None:
    """OpenAI's RN towers are read by their embedding alone; the sentence says which number does that."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    preprocess = open_clip.image_transform(
        32, is_train=False, **{k: PREPROCESS_CFG["gelu"][k] for k in ("mean", "std")}
    )
    clip = Clip(model=model, preprocess=preprocess, tokenize=None, config={})
    with pytest.raises(UserError, match=r"ModifiedResNet has no patch tokens; with evaluate\.probe\.grid 0"):
        probe.run(clip, tiny.benchmarks / "probe", batch_size=32, options=options(tiny))
    alone = probe.run(clip, tiny.benchmarks / "probe", batch_size=32, options=options(tiny, grid=0))
    assert len(alone.items) == 360 and not alone.also


def codes(scenes: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in scenes}


def test_probe_scenes_are_heldout_and_disjoint() -> None:
    """No combination is in both parts, or in the training half of the world; what cannot be seen is not asked."""
    rng = np.random.default_rng(0)
    (train, asked), (test, asked_of_test) = draw_asked(rng, 3000, of_train), draw_balanced(rng, 600)
    assert not codes(train) & codes(test) and world.is_heldout(np.concatenate([train, test])).all()
    for scenes, shown in ((train, asked), (test, asked_of_test)):
        single = (scenes[:, COLUMN["count"]] == 0) & (scenes[:, COLUMN["position"]] == 0)
        assert single[shown[:, COLUMN["relation"]]].all()
        points = np.isin(scenes[:, COLUMN["object"]], [3, 4, 5])
        assert points[shown[:, COLUMN["orientation"]]].all()
        ball = scenes[:, COLUMN["relation"]] > 0
        assert not ball[shown[:, COLUMN["count"]] | shown[:, COLUMN["position"]]].any(), "a ball tells both"


@pytest.mark.parametrize("n", [1, 30, 600])
def test_every_value_is_asked_for_alike(n: int) -> None:
    """Each attribute n times, its values equally often to one; and no image of which nothing is asked."""
    scenes, asked = draw_balanced(np.random.default_rng(n), n)
    for column, values in enumerate(ATTRIBUTES.values()):
        counts = np.bincount(scenes[asked[:, column], column], minlength=len(values))
        assert counts.sum() == n and counts.max() - counts.min() <= 1
    assert asked.any(1).all() and len(scenes) < 3 * n + 30


def test_attributes_do_not_tell_each_other() -> None:
    """Of the training scenes that are asked for both, every two attributes are independent (chi-squared of tables)."""
    scenes, asked = draw_asked(np.random.default_rng(0), 6000, of_train)
    p_values = []
    for i in range(len(NAMES)):
        for j in range(i):
            both = scenes[asked[:, i] & asked[:, j]]
            if len(both):
                table = np.zeros((len(ATTRIBUTES[NAMES[i]]), len(ATTRIBUTES[NAMES[j]])))
                np.add.at(table, (both[:, i], both[:, j]), 1)
                table = table[table.sum(1) > 0][:, table.sum(0) > 0]
                p_values.append(chi2_contingency(table).pvalue)
    assert len(p_values) == 64 and min(p_values) > 0.01 / len(p_values)


def test_labels_are_those_of_their_own_picture(tiny) -> None:
    """The border of a picture that is called black is darker than grey's, and that is darker than white's."""
    samples = read(tiny.benchmarks / "probe/test/0.tar")
    assert all(list(labels) == NAMES for _, _, labels in samples)
    border: dict[str, list[float]] = {}
    for _, image, labels in samples:
        pixels = np.asarray(image)
        border.setdefault(labels["background"], []).append(float(np.median([pixels[0], pixels[-1]])))
    assert max(border["black"]) < min(border["grey"]) and max(border["grey"]) < min(border["white"])


def test_numbers_of_the_world_reach_the_tars(tiny) -> None:
    """As many training scenes as world.yaml says."""
    assert len(read(tiny.benchmarks / "probe/train/0.tar")) == tiny.params["shapes"]["probe_train_scenes"]
