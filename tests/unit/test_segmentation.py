"""Open-vocabulary segmentation: windows, scores and data, against loops, hand-made maps and torchmetrics."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize, pad
from torchmetrics.classification import MulticlassJaccardIndex

from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import segmentation
from un2clip.evaluation.dense.features import dense_features, text_features
from un2clip.evaluation.dense.layouts import LAYOUTS, read_data_set
from un2clip.evaluation.dense.masks import class_colours, palette, read_mask, read_photograph
from un2clip.evaluation.dense.names import check_names, packaged_names
from un2clip.evaluation.dense.pamr import refine
from un2clip.evaluation.dense.protocols import Settings, get_settings, load_protocols
from un2clip.evaluation.dense.windows import similarity_maps, windows
from un2clip.evaluation.measuring import Evaluate
from un2clip.evidence.scores import Item, load_scores, score_of
from un2clip.models.clip import load_clip
from un2clip.stages.evaluate import evaluate

REALDATA = Path(__file__).parents[3] / "shared/realdata"
SETTINGS = Settings(short_side_px=64, crop_px=32, stride_px=16, logit_scale=50.0, threshold=0.0, area_threshold=0.0)
NAMES = (("cat",), ("dog",), ("tree",))


def options(method: str = "clearclip", protocol: str = "laptop") -> segmentation.Options:
    return segmentation.Options(method=method, protocol=protocol, pictures=2)


@pytest.fixture(scope="module")
def clip(tiny):
    return load_clip(tiny.backbones / "clip")


@pytest.mark.parametrize(
    ("side", "crop", "stride", "starts"),
    [
        (336, 224, 112, [0, 112]),
        (500, 224, 112, [0, 112, 224, 276]),  # the last one is shifted back
        (448, 448, 224, [0]),
        (449, 448, 224, [0, 1]),
        (100, 224, 112, [0]),  # smaller than a window
    ],
)
def test_windows_by_hand(side: int, crop: int, stride: int, starts: list[int]) -> None:
    """Rows and columns of windows as the reference codes lay them."""
    found = windows(side, 30, crop, stride)
    assert [window.top for window in found] == starts
    assert {(window.left, window.height, window.width) for window in found} == {(0, min(side, crop), 30)}


@torch.no_grad()
def naive_maps(visual, picture, text, method, crop, stride, edge="pad"):
    """SCLIP's and ClearCLIP's loop, one window at a time; the one leaves out what the patch does not divide."""
    _, height, width = picture.shape
    total, count = torch.zeros(text.shape[1], height, width), torch.zeros(height, width)
    for i in range(max(height - crop + stride - 1, 0) // stride + 1):
        for j in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            part = picture[None, :, top:bottom, left:right]
            h, w = part.shape[2:]
            if edge == "floor":
                features = normalize(dense_features(visual, part[:, :, : h - h % 8, : w - w % 8], method)[0], dim=0)
                cosines = torch.einsum("dhw,dq->qhw", features, text)
                total[:, top:bottom, left:right] += interpolate(cosines[None], size=(h, w), mode="bilinear")[0]
                count[top:bottom, left:right] += 1
                continue
            down, across = (8 - h % 8) % 8, (8 - w % 8) % 8
            part = pad(part, (across // 2, across - across // 2, down // 2, down - down // 2))
            cosines = torch.einsum("dhw,dq->qhw", normalize(dense_features(visual, part, method)[0], dim=0), text)
            large = interpolate(cosines[None], size=part.shape[2:], mode="bilinear", align_corners=False)[0]
            total[:, top:bottom, left:right] += large[:, down // 2 : down // 2 + h, across // 2 : across // 2 + w]
            count[top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("edge", ["pad", "floor"])
@pytest.mark.parametrize(("crop", "stride"), [(32, 16), (30, 21), (64, 64)])
def test_batched_windows_equal_a_loop_of_single_ones(clip, batch_size: int, edge: str, crop: int, stride: int) -> None:
    """Pictures of several sizes in one stream, some smaller than a window, sizes that the patch does not divide."""
    torch.manual_seed(0)
    pictures = [torch.randn(3, *size) for size in ((64, 64), (37, 81), (20, 45), (64, 64))]
    text = normalize(torch.randn(clip.embed_dim, 5), dim=0)
    visual, how = clip.model.visual, {"method": "sclip", "crop": crop, "stride": stride, "edge": edge}
    found = list(similarity_maps(clip, iter(pictures), text, **how, batch_size=batch_size))
    assert len(found) == 4
    for picture, each in zip(pictures, found, strict=True):
        torch.testing.assert_close(each[:], naive_maps(visual, picture, text, **how), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_a_whole_picture_is_padded_or_floored(clip) -> None:
    """crop 0: padded it equals one window as large as the picture; floored it keeps the patches that fit, 4 x 10."""
    torch.manual_seed(0)
    picture, text = torch.randn(3, 37, 81), normalize(torch.randn(clip.embed_dim, 5), dim=0)
    visual, how = clip.model.visual, {"method": "naclip", "crop": 0, "stride": 0, "batch_size": 2}
    (padded,) = similarity_maps(clip, [picture], text, **how, edge="pad")
    torch.testing.assert_close(padded[:], naive_maps(visual, picture, text, "naclip", 81, 81), atol=2e-6, rtol=1e-5)
    (floored,) = similarity_maps(clip, [picture], text, **how, edge="floor")
    features = normalize(dense_features(visual, picture[None, :, :32, :80], "naclip")[0], dim=0)
    torch.testing.assert_close(floored[:], torch.einsum("dhw,dq->qhw", features, text), atol=2e-6, rtol=1e-5)
    assert floored[:].shape == (5, 4, 10)
    with pytest.raises(UserError, match="a picture of 7 x 81 px is smaller than a patch of 8 x 8"):
        list(similarity_maps(clip, [picture[:, :7]], text, **how, edge="floor"))


def test_no_more_pictures_are_held_than_fill_a_batch(clip) -> None:
    """Of an endless stream of nine windows a picture, a batch of 20 takes two, and one more to know it is full."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield torch.zeros(3, 64, 64)

    text = normalize(torch.randn(clip.embed_dim, 2), dim=0)
    maps = similarity_maps(clip, endless(), text, method="clip", crop=32, stride=16, edge="pad", batch_size=20)
    next(maps), next(maps)
    assert len(taken) == 3


def overlaps(truth, predicted, names):
    counts = segmentation.confusion(torch.as_tensor(truth), torch.as_tensor(predicted), len(names))
    return segmentation.overlaps(counts.numpy(), names)


def scored(pairs, names=NAMES) -> tuple[Item, ...]:
    return tuple(
        Item(id=f"{i}@{name}", type=name, value=intersection, of=union)
        for i, (truth, predicted) in enumerate(pairs)
        for name, intersection, union in overlaps(truth, predicted, names)
    )


def test_overlaps_by_hand() -> None:
    """4 x 4 pixels, a row ignored, one class absent from both: intersections and unions counted by hand."""
    truth = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]])
    predicted = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 2, 2]])
    assert list(overlaps(truth, predicted, NAMES)) == [("cat", 5, 7), ("dog", 5, 7)]
    assert score_of(scored([(truth, predicted)]), "mIoU") == pytest.approx(100 * 5 / 7)
    predicted[0, 0] = 2  # predicted and nowhere in the labels: a class of IoU 0
    assert list(overlaps(truth, predicted, NAMES)) == [("cat", 4, 7), ("dog", 5, 7), ("tree", 0, 1)]
    assert score_of(scored([(truth, predicted)]), "mIoU") == pytest.approx(100 * (4 / 7 + 5 / 7) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_torchmetrics_jaccard_index(seed: int) -> None:
    """Over a set of maps with ignored pixels, absent classes and classes only predicted: MulticlassJaccardIndex."""
    rng = np.random.default_rng(seed)
    names = tuple((f"class {i}",) for i in range(8))
    oracle = MulticlassJaccardIndex(num_classes=8, average="macro", ignore_index=-1)
    pairs = []
    for _ in range(5):
        truth = rng.integers(-1, 5, (9, 11))  # classes 5, 6, 7 never in the labels
        predicted = np.where(rng.random((9, 11)) < 0.5, np.maximum(truth, 0), rng.integers(0, 7, (9, 11)))  # never 7
        pairs.append((truth, predicted))
        oracle.update(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert score_of(scored(pairs, names), "mIoU") == pytest.approx(100 * oracle.compute().item(), rel=1e-6)


def one_hot(classes: np.ndarray, n: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(classes).clamp(min=0), n).permute(2, 0, 1).float()


def test_ground_truth_fed_as_prediction_scores_100(tiny) -> None:
    """Labels of the laptop world as similarities give 100 in every class."""
    data = read_data_set(tiny.benchmarks / "segmentation")
    pairs = []
    for photograph in data.photographs:
        truth = read_mask(data, photograph, 64, 64)
        pairs.append((truth, segmentation.classify(one_hot(truth, 6), (64, 64), data.names, SETTINGS, False)))
    assert score_of(scored(pairs, data.names), "mIoU") == 100.0


@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 19, 64])
def test_the_best_name_is_found_some_names_at_a_time(monkeypatch, n: int) -> None:
    """Every pixel's name is that of an argmax over all of them at once, the first where several are equal."""
    monkeypatch.setattr(segmentation, "VALUES_AT_ONCE", 1)  # eight names at a time
    rng = torch.Generator().manual_seed(0)
    names = tuple((f"class {i}",) for i in range(n))
    for cosines in (torch.randint(0, 3, (n, 6, 8), generator=rng) / 3, torch.rand(n, 14, 14, generator=rng)):
        expected = interpolate(cosines[None], size=(23, 31), mode="bilinear")[0].argmax(0)
        assert torch.equal(segmentation.classify(cosines, (23, 31), names, SETTINGS, False), expected)


def test_several_names_a_class_and_the_background() -> None:
    """A class has its best name's probability; below the threshold, or too small, a pixel is background."""
    names = (("wall", "floor"), ("cat", "kitten"), ("dog",))
    cosines = torch.tensor([[0.0, 0.30, 0.29, 0.2], [0.29, 0.0, 0.28, 0.2], [0.30, 0.1, 0.0, 0.2]])
    cosines = torch.cat([cosines[:2], torch.tensor([[0.1, 0.1, 0.0, 0.2]]), cosines[2:], torch.zeros(1, 4)])[:, None]

    def classes(background: bool, **changes: float) -> list[int]:
        settings = dataclasses.replace(SETTINGS, **changes)
        return segmentation.classify(cosines.clone(), (1, 4), names, settings, background)[0].tolist()

    assert classes(False) == [1, 0, 0, 0]
    cosines[4, 0, 3] = 0.21  # the dog is a little more likely than each of four equal names
    assert classes(False) == [1, 0, 0, 2]
    assert classes(True, threshold=0.25) == [1, 0, 0, 2] and classes(True, threshold=0.4) == [1, 0, 0, 0]
    assert classes(False, threshold=0.4) == [1, 0, 0, 2], "without a background nothing can become it"
    assert classes(True, area_threshold=0.5) == [0, 0, 0, 0] and classes(True, area_threshold=0.4) == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # Of ten object pixels cat has 7, dog 2, tree 1; ten more are background, and count for no share.
        (0.0, [0] * 10 + [1] * 7 + [2, 2, 3]),
        (0.05, [0] * 10 + [1] * 7 + [2, 2, 3]),
        (0.1, [0] * 10 + [1] * 7 + [2, 2, 1]),  # no more than a tenth: the tree goes to its next best, the cat
        (0.15, [0] * 10 + [1] * 7 + [2, 2, 1]),  # dog's 2 of 10 are kept; of all 20 pixels they would be too few
        (0.2, [0] * 10 + [1] * 7 + [0, 1, 1]),  # the dogs go, too: one to the background, one to the cat
        (0.7, [0] * 20),  # nothing is left but the background
    ],
)
def test_area_threshold_by_a_hand_made_table(share: float, expected: list[int]) -> None:
    """SCLIP's: a class with no more than this share of the object pixels is left out, each of its pixels goes on."""
    order = [(0, 1)] * 10 + [(1, 0)] * 7 + [(2, 0), (2, 1), (3, 1)]  # best and second best class of each pixel
    cosines = torch.zeros(4, 1, 20)
    for i, (best, second) in enumerate(order):
        cosines[best, 0, i], cosines[second, 0, i] = 0.3, 0.2
    settings = dataclasses.replace(SETTINGS, area_threshold=share, threshold=0.001)
    names = (("background",), *NAMES)
    assert segmentation.classify(cosines, (1, 20), names, settings, True)[0].tolist() == expected


@torch.no_grad()
def test_text_features_by_a_loop(clip) -> None:
    """Mean of 80 normalised templates, normalised."""
    names = (("cat", "kitten"), ("dog",))
    found = text_features(clip, names)
    for i, name in enumerate(("cat", "kitten", "dog")):
        each = [clip.embed_texts([template(name)])[0] for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
        mean = torch.stack([vector / vector.norm() for vector in each]).mean(0)
        torch.testing.assert_close(found[:, i], mean / mean.norm(), atol=1e-6, rtol=1e-5)
    assert text_features(clip, (("dog",),)).shape == (clip.embed_dim, 1)


def test_a_whole_data_set_by_a_naive_loop(tiny, clip) -> None:
    """The score is torchmetrics' over predictions made picture by picture; batch size changes no item."""
    folder = tiny.benchmarks / "segmentation"
    data, oracle = read_data_set(folder), MulticlassJaccardIndex(num_classes=6, ignore_index=-1)
    text = text_features(clip, data.names)
    mean, std = (torch.tensor(clip.config["preprocess_cfg"][key])[:, None, None] for key in ("mean", "std"))
    for photograph in data.photographs:
        image = torch.from_numpy(np.array(Image.open(photograph.image))).permute(2, 0, 1) / 255
        maps = naive_maps(clip.model.visual, (image - mean) / std, text, "clearclip", 32, 16)
        truth = torch.from_numpy(np.array(Image.open(photograph.mask)).astype(int)) - 1  # 0 does not count
        oracle.update(maps.argmax(0), truth)
    outcome = segmentation.run(clip, folder, batch_size=16, options=options())
    assert outcome == segmentation.run(clip, folder, batch_size=1, options=options()) and outcome.unit == "mIoU"
    assert score_of(outcome.items, "mIoU") == pytest.approx(100 * oracle.compute().item(), abs=0.01)
    assert outcome.protocol.startswith(
        "clearclip features, laptop settings of own (64/32/16 px, scale 50, thresholds 0, 0; edges padded), "
        "resized as OpenCV does 8 bits, 6 classes, names "
    )
    assert segmentation.run(clip, folder, batch_size=16, options=options("naclip")).protocol != outcome.protocol


@pytest.mark.parametrize(
    ("size", "expected"), [((500, 375), (448, 336)), ((375, 500), (336, 448)), ((1000, 100), (1000, 100))]
)
def test_pictures_are_resized_as_the_protocol_says(clip, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Short side 336 unless the long side would exceed its limit; grey levels stay whole, then are normalised."""
    settings = dataclasses.replace(SETTINGS, short_side_px=336)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = segmentation.prepare(pixels, settings, 1000, clip.model.visual.preprocess_cfg)
    assert found.shape == (3, *expected)
    mean, std = (torch.tensor(clip.config["preprocess_cfg"][key])[:, None, None] for key in ("mean", "std"))
    levels = (found * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    if size == expected:
        assert (levels.permute(1, 2, 0) - torch.from_numpy(pixels)).abs().max() < 1e-3


def test_published_settings() -> None:
    """SCLIP's, ClearCLIP's and NACLIP's settings of all eight sets: short side, crop, stride, scale, thresholds."""
    table = """
        voc21 336 224 112 65 0.1 0.1  448 448 224 50 0.5 0  336 0 0 40 0.1 0
        voc20 336 224 112 40 0 0      448 448 224 50 0 0  336 0 0 40 0 0
        context60 336 224 112 50 0.1 0  448 448 224 50 0.15 0  336 224 112 40 0.1 0
        context59 336 224 112 40 0 0  448 448 224 50 0 0  336 224 112 40 0 0
        coco_object 336 224 112 50 0.1 0  448 448 224 50 0.4 0  336 224 112 40 0.1 0
        coco_stuff 448 224 112 40 0 0  448 448 224 50 0 0  336 224 112 40 0 0
        cityscapes 560 224 112 40 0 0  448 224 224 50 0 0  560 224 112 40 0 0
        ade20k 336 224 112 40 0 0  448 448 224 50 0 0  336 224 112 40 0 0
    """
    rows = [line.split() for line in table.strip().splitlines()]
    assert {row[0] for row in rows} == {name for name, layout in LAYOUTS.items() if layout.names}
    for name, *numbers in rows:
        for protocol, values in (("sclip", numbers[:6]), ("clearclip", numbers[6:12]), ("naclip", numbers[12:])):
            assert list(dataclasses.astuple(get_settings(protocol, name))) == [float(value) for value in values]
    assert {protocol.long_side_px for protocol in load_protocols().values()} == {2048}
    assert {name: (each.edge, each.pamr_steps, each.own_names) for name, each in load_protocols().items()} == {
        "sclip": ("floor", 0, True),
        "clearclip": ("pad", 0, True),
        "naclip": ("floor", 10, True),
        "laptop": ("pad", 0, False),
    }
    assert str(get_settings("naclip", "voc21")) == "336 px, whole image, scale 40, thresholds 0.1, 0"
    assert str(load_protocols()["naclip"]) == "edges floored, PAMR of 10 steps"
    with pytest.raises(ValueError, match="must both be 0"):
        dataclasses.replace(SETTINGS, crop_px=0)
    with pytest.raises(UserError, match="protocol laptop has no settings for voc20; it has them for own"):
        get_settings("laptop", "voc20")


def test_official_names() -> None:
    """As many classes as each set has, each called so once."""
    counts = {"voc": 20, "context": 59, "coco_object": 80, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
    for file, n in counts.items():
        names = packaged_names(file)
        assert len(check_names(names, Path(file))) == n
    assert packaged_names("coco_stuff")[:80] == packaged_names("coco_object")


@torch.no_grad()
def test_naclips_settings_end_to_end(tiny, clip, tmp_path, monkeypatch) -> None:
    """The whole picture floored, stretched to its own size, ten steps of PAMR on it: by hand for each photograph."""
    folder = shutil.copytree(tiny.benchmarks / "segmentation", tmp_path / "segmentation")
    data, settings = read_data_set(folder), get_settings("naclip", "voc20")
    settings = dataclasses.replace(settings, short_side_px=45)  # the patch of 8 leaves 5 pixels out
    monkeypatch.setattr(segmentation, "get_settings", lambda *names: settings)
    oracle, text = MulticlassJaccardIndex(num_classes=6, ignore_index=-1), text_features(clip, data.names)
    for photograph in data.photographs:
        cfg = clip.model.visual.preprocess_cfg
        picture = segmentation.prepare(read_photograph(photograph), settings, 2048, cfg)
        cosines = torch.einsum(
            "dhw,dq->qhw",
            normalize(dense_features(clip.model.visual, picture[None, :, :40, :40], "naclip")[0], dim=0),
            text,
        )
        looks, large = (interpolate(each[None], size=(64, 64), mode="bilinear")[0] for each in (picture, cosines))
        truth = torch.from_numpy(read_mask(data, photograph, 64, 64))
        oracle.update(refine(large, looks, 10).argmax(0), truth)
    outcome = segmentation.run(clip, folder, batch_size=2, options=options("naclip", "naclip"))
    assert score_of(outcome.items, "mIoU") == pytest.approx(100 * oracle.compute().item(), abs=0.01)
    assert "(45 px, whole image, scale 40, thresholds 0, 0; edges floored, PAMR of 10 steps)" in outcome.protocol


@pytest.mark.parametrize("protocol", ["sclip", "clearclip", "naclip"])
def test_a_papers_settings_with_other_names_are_said(tmp_path, clip, capsys, protocol: str) -> None:
    """Without a classes.txt in a public set's folder the run says whose names they are; with one it says nothing."""
    folder = lay_out(tmp_path / "segmentation-voc20", "voc20", [1, 2])
    segmentation.run(clip, folder, batch_size=8, options=options(protocol=protocol))
    said = capsys.readouterr().out
    assert f"the official names of voc20. Those of the authors of {protocol} move mIoU by several points" in said
    assert str(folder / "classes.txt") in said
    (folder / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(20)))
    segmentation.run(clip, folder, batch_size=8, options=options(protocol=protocol))
    assert capsys.readouterr().out == ""


# Readers: two photographs in each set's own layout, labels as the set has them.

SIZES = {"a": (6, 4), "b": (5, 7)}


def lay_out(folder: Path, name: str, labels: list[int]) -> Path:
    """Two photographs, b a grey one; each mask is void but for its first row, which holds `labels`."""
    layout = LAYOUTS[name]
    ids = {"cityscapes": {"x/x_0": "a", "y/y_1": "b"}}.get(name, {"a": "a", "b": "b"})
    for each, key in ids.items():
        width, height = SIZES[key]
        stem = each
        image = folder / layout.images.format(id=each if layout.names else f"{each}.jpg")
        mask = folder / layout.masks.format(id=stem)
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if key == "a" else "L", (width, height)).save(image)
        pixels = np.full((height, width), 255, np.uint8)
        pixels[0, : len(labels)] = labels
        picture = Image.fromarray(pixels)
        if name.startswith(("voc", "context")):
            picture.putpalette(palette(256).tobytes())
        picture.save(mask)
    if layout.listed:
        (folder / layout.listed).parent.mkdir(parents=True)
        (folder / layout.listed).write_text("b\na\n")
    if not layout.names:
        (folder / "segmentation.yaml").write_text(f"layout: {name}\n")
        (folder / "classes.yaml").write_text("0: unlabeled\n3: sky\n7: background\n12: sea, ocean\n")
    return folder


@pytest.mark.parametrize(
    ("name", "n", "labels", "classes"),
    [
        ("voc20", 20, [0, 1, 20, 255], [-1, 0, 19, -1]),
        ("voc21", 21, [0, 1, 20, 255], [0, 1, 20, -1]),
        ("context59", 59, [0, 1, 59, 255], [-1, 0, 58, -1]),
        ("context60", 60, [0, 1, 59, 255], [0, 1, 59, -1]),
        ("coco_object", 81, [0, 1, 80, 255], [0, 1, 80, -1]),
        ("coco_stuff", 171, [0, 1, 170, 255], [0, 1, 170, -1]),
        ("cityscapes", 19, [0, 1, 18, 255], [0, 1, 18, -1]),
        ("ade20k", 150, [0, 1, 150, 255], [-1, 0, 149, -1]),
        ("images_and_masks", 3, [0, 3, 7, 12, 255], [-1, 1, 0, 2, -1]),
    ],
)
def test_every_layout(tmp_path, name: str, n: int, labels: list[int], classes: list[int]) -> None:
    """Photographs in order, a grey one in colour, labels to classes; the background is class 0 where there is one."""
    data = read_data_set(lay_out(tmp_path / f"segmentation-{name}", name, labels))
    assert len(data.names) == n and len(data.photographs) == 2
    assert data.name == (name if LAYOUTS[name].names else "own")
    assert (data.names[0][0] == "background") == data.background
    assert [each.id for each in data.photographs] == {
        "cityscapes": ["x/x_0", "y/y_1"], "images_and_masks": ["a", "b"]
    }.get(name, ["b", "a"] if LAYOUTS[name].listed else ["a", "b"])  # fmt: skip
    for photograph in data.photographs:
        pixels = read_photograph(photograph)
        assert pixels.shape[2] == 3 and pixels.dtype == np.uint8
        found = read_mask(data, photograph, *pixels.shape[:2])
        assert found[0, : len(classes)].tolist() == classes and (found[1:] == -1).all()


def write(path: Path, image: Image.Image) -> None:
    image.save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "SegmentationClass/a.png").unlink(), r"no mask .*SegmentationClass/a\.png"),
        (lambda f: (f / "JPEGImages/b.jpg").unlink(), r"no image .*JPEGImages/b\.jpg"),
        (lambda f: write(f / "SegmentationClass/a.png", Image.new("L", (4, 6))), r"a\.png is 4 x 6, but .* is 6 x 4"),
        (lambda f: write(f / "SegmentationClass/a.png", Image.new("L", (6, 4), 21)), r"a\.png has the label 21, which"),
        (lambda f: write(f / "SegmentationClass/a.png", Image.new("RGB", (6, 4))), r"a\.png is no mask"),
        (lambda f: (f / "SegmentationClass/a.png").write_bytes(b"PNG"), r"a\.png is not a readable image"),
        (lambda f: (f / "JPEGImages/a.jpg").write_bytes(b"\xff\xd8\xff"), r"a\.jpg is not a readable image"),
        (lambda f: (f / "ImageSets/Segmentation/val.txt").write_text("\n"), r"val\.txt holds no images"),
        (lambda f: (f / "ImageSets/Segmentation/val.txt").unlink(), r"no .*val\.txt, which lists the images"),
        (lambda f: (f / "ImageSets/Segmentation/val.txt").write_text("a a"), "two images are called a"),
        (lambda f: (f / "ImageSets/Segmentation/val.txt").write_text("../../x"), "'../../x' is not the name of an"),
        (lambda f: (f.parent / "classes.txt").write_text("cat\ncat\n"), "class 'cat' must be called so once"),
        (lambda f: (f.parent / "classes.txt").write_text("\n"), "names no class"),
        (lambda f: (f.parent / "segmentation.yaml").write_text("layout: kitti"), "does not say how it is laid out"),
    ],
)
def test_bad_data_is_named(tmp_path, clip, spoil, message: str) -> None:
    """A mistake in the data is one line with the file's name and what is wrong with it."""
    folder = lay_out(tmp_path / "segmentation-voc20", "voc20", [0, 1, 20, 255])
    spoil(folder / "VOC2012")
    with pytest.raises(UserError, match=message):
        segmentation.run(clip, folder, batch_size=16, options=options(protocol="sclip"))


def test_folders_of_your_own(tmp_path) -> None:
    """A folder without a known layout says what to write; names of your own take the place of the official ones."""
    with pytest.raises(UserError, match="write `layout: NAME` into .*segmentation.yaml"):
        read_data_set(lay_out(tmp_path / "segmentation", "ade20k", [1]))
    folder = lay_out(tmp_path / "segmentation-cityscapes", "cityscapes", [1])
    (folder / "classes.txt").write_text("street, road\npavement\n")
    assert read_data_set(folder).names == (("street", "road"), ("pavement",))
    folder = lay_out(tmp_path / "segmentation-mine", "images_and_masks", [3])
    (folder / "masks/b.png").unlink()
    with pytest.raises(UserError, match=r"no mask .*masks/b\.png"):
        read_data_set(folder)
    (folder / "classes.yaml").write_text("sky: 3\n")
    with pytest.raises(UserError, match="a class is a label between 0 and 65535 and its names; got 'sky': 3"):
        read_data_set(folder)


def test_stage_writes_scores_of_both_and_pictures(tiny, tmp_path) -> None:
    """Two scores files of one protocol, equal for equal encoders, and a PNG that shows every class in its colour."""
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny.backbones / "clip", encoder)
    lineage = {
        "method": "un2clip", "seed": 0, "params": {}, "parents": {"clip": "c"}, "encoder_sha256": "e",
        "text_sha256": "t", "steps_done": 1, "corrupt": 0, "complete": True,
    }  # fmt: skip
    (encoder / "lineage.json").write_text(json.dumps(lineage))
    for out in ("one", "two"):
        names = {"checkpoints": "", "backbones": tiny.backbones, "encoder": encoder, "scores": tmp_path / out}
        params = dataclasses.replace(tiny.section(Evaluate, "evaluate"), segmentation=options())
        evaluate(params, benchmark="segmentation", device="cpu", benchmarks=tiny.benchmarks, **names)
    reference, tuned = load_scores(tmp_path / "one/reference.json"), load_scores(tmp_path / "one/tuned.json")
    assert reference.items == tuned.items and reference.protocol == tuned.protocol and reference.unit == "mIoU"
    assert 0 <= reference.score <= 100
    assert (tmp_path / "one/segmentation.png").read_bytes() == (tmp_path / "two/segmentation.png").read_bytes()
    picture = np.asarray(Image.open(tmp_path / "one/segmentation.png").convert("RGB")).reshape(-1, 3)
    data = read_data_set(tiny.benchmarks / "segmentation").first(2)
    shown = np.unique(np.concatenate([read_mask(data, each, 64, 64).ravel() for each in data.photographs]))
    for each in shown[shown >= 0]:
        assert (picture == class_colours(data)[each]).all(1).sum() > 20


def test_colours_of_the_pictures(tmp_path, tiny) -> None:
    """The laptop's classes have the colours they are called by; a mask without a palette gets VOC's."""
    laptop = class_colours(read_data_set(tiny.benchmarks / "segmentation"))
    assert laptop[0].tolist() == [220, 40, 40] and laptop[2].tolist() == [50, 80, 230]
    first = [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128]]
    assert palette(256)[:9].tolist() == [[0, 0, 0], *first, [64, 0, 0]]
    ade = class_colours(read_data_set(lay_out(tmp_path / "segmentation-ade20k", "ade20k", [1])))
    assert ade[:7].tolist() == first and len(np.unique(ade, axis=0)) == 150
    voc = class_colours(read_data_set(lay_out(tmp_path / "segmentation-voc20", "voc20", [1])))
    assert voc[:7].tolist() == first


def test_photographs_of_coco(tmp_path, clip) -> None:
    """COCO photographs and masks, as users have their own: every image and every labelled pixel is scored."""
    if not REALDATA.is_dir():
        pytest.skip("no ../shared/realdata beside the repository: COCO photographs and masks to try readers on")
    shutil.copytree(REALDATA / "masks", tmp_path / "masks")
    (tmp_path / "images").mkdir()
    (tmp_path / "segmentation.yaml").write_text("layout: images_and_masks\n")
    for path in sorted((tmp_path / "masks").glob("*.png"))[6:]:
        path.unlink()
    wanted = {path.stem for path in (tmp_path / "masks").glob("*.png")}
    for tar in sorted(REALDATA.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if member.name.endswith(".jpg") and Path(member.name).stem in wanted:
                    (tmp_path / "images" / member.name).write_bytes(file.extractfile(member).read())
    data = read_data_set(tmp_path)
    assert len(data.photographs) == len(wanted) == 6 and not data.background
    outcome = segmentation.run(clip, tmp_path, batch_size=64, options=options())
    assert {item.sample for item in outcome.items} == wanted
    labelled = sum((read_mask(data, each, *read_photograph(each).shape[:2]) >= 0).sum() for each in data.photographs)
    confused = sum(item.of - item.value for item in outcome.items)  # a wrong pixel is in two unions
    assert sum(item.value for item in outcome.items) + confused / 2 == labelled
