"""Zero-shot classification: clip-benchmark is the oracle, and every layout gives the same outcomes."""

import io
import json
import pickle
import shutil
import tarfile
from hashlib import md5
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from un2clip.datasets.random_access import locate
from un2clip.errors import UserError
from un2clip.evaluation import shipped
from un2clip.evaluation.benchmarks import zeroshot
from un2clip.evaluation.unpacked import UNPACKED, open_unpacked
from un2clip.models.clip import load_clip

TEMPLATES = "zeroshot_classification_templates.txt"


@pytest.fixture
def run(tiny):
    clip = load_clip(tiny.backbones / "clip")
    return lambda folder: zeroshot.run(clip, folder, batch_size=7).items


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny world's set, under the name of a data set."""
    return lambda name: shutil.copytree(tiny.benchmarks / "zeroshot", tmp_path / name)


def png(seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_equals_clip_benchmarks_own_number(tiny, run, clip_benchmark):
    """The items are those of clip-benchmark's reader, classifier and logits, and their mean over types its recall."""
    clip, folder = load_clip(tiny.backbones / "clip"), tiny.benchmarks / "zeroshot"
    metric = clip_benchmark("metrics.zeroshot_classification")
    data = clip_benchmark("datasets.builder").build_dataset("wds/x", root=str(folder), transform=clip.preprocess)
    classifier = metric.zero_shot_classifier(clip.model, clip.tokenize, data.classes, data.templates, "cpu", amp=False)
    logits, labels = metric.run_classification(
        clip.model, classifier, DataLoader(data.batched(7), batch_size=None), "cpu", amp=False
    )
    items = run(folder)
    assert [item.value for item in items] == (logits.argmax(1) == labels).double().tolist()
    types = [np.mean([i.value for i in items if i.type == name]) for name in {item.type for item in items}]
    assert np.mean(types) == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-12)


def test_names_and_templates_are_clip_benchmarks(clip_benchmark):
    """Letter by letter; what comes from open_clip and timm too."""
    folder = files(clip_benchmark("datasets"))
    names, templates = (
        json.loads((folder / f"en_{what}.json").read_text())
        for what in ("classnames", "zeroshot_classification_templates")
    )
    voc = clip_benchmark("datasets.voc2007").object_categories
    assert shipped.shipped_names() == names | {"voc2007": voc}
    assert shipped.shipped_templates() | {"dummy": templates["dummy"]} == templates
    assert list(shipped.imagenet_subset("imagenet1k").values()) == names["imagenet1k"]


def test_plain_tars_in_any_number_give_the_same_outcomes(run, copy, tiny):
    """Tars beside classnames.txt, cut in three, are the same data set."""
    folder = copy("plain")
    with tarfile.open(folder / "test/0.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    shutil.rmtree(folder / "test")
    for i in range(3):
        write_tar(folder / f"{i}.tar", members[i * 20 : (i + 1) * 20 if i < 2 else None])
    assert run(folder) == run(tiny.benchmarks / "zeroshot")


def test_clip_benchmarks_names_and_templates_where_the_folder_has_none(run, copy, tmp_path):
    """zeroshot-mnist without its texts is scored by those that are shipped for mnist."""
    write_tar(
        tmp_path / "zeroshot-mnist/a.tar",
        [(f"{i}.{e}", c) for i in range(4) for e, c in (("png", png(i)), ("cls", b"7"))],
    )
    assert {item.type for item in run(tmp_path / "zeroshot-mnist")} == {"7"}
    write_tar(tmp_path / "zeroshot-birds/a.tar", [("a.png", png()), ("a.cls", b"1")])
    with pytest.raises(UserError, match=r"no .*zeroshot-birds/classnames.txt, and none is known for 'birds'"):
        run(tmp_path / "zeroshot-birds")
    (tmp_path / "zeroshot-birds/classnames.txt").write_text("wren\nrobin\n")
    assert [item.type for item in run(tmp_path / "zeroshot-birds")] == ["robin"]  # ImageNet's templates


def test_two_classes_of_one_name_stay_two(run, copy):
    """ImageNet names two classes sunglasses; their outcomes are not thrown together."""
    folder = copy("z")
    (folder / "classnames.txt").write_text("sunglasses\nsunglasses\nmissile\n")
    write_tar(
        folder / "test/0.tar", [(f"{i}.{e}", c) for i in range(3) for e, c in (("png", png(i)), ("cls", b"%d" % i))]
    )
    assert [item.type for item in run(folder)] == ["sunglasses (0)", "sunglasses (1)", "missile"]


def cifar10(folder):
    """CIFAR-10's published layout with 10 test images; its check sums are what torchvision is told to expect."""
    base = folder / CIFAR10.base_folder
    base.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
    (base / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return pixels, {name: md5((base / name).read_bytes()).hexdigest() for name in ("test_batch", "batches.meta")}


def test_unpacked_data(run, tmp_path, monkeypatch):
    """CIFAR-10 as published gives what the same images give from tars; a file with another check sum is refused."""
    pixels, sums = cifar10(tmp_path / "zeroshot-cifar10")
    with pytest.raises(UserError, match="is not cifar10 as it is published .*corrupted"):
        run(tmp_path / "zeroshot-cifar10")
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    members = []
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, "png")
        members += [(f"{i}.png", buffer.getvalue()), (f"{i}.cls", str(i).encode())]
    write_tar(tmp_path / "tars/zeroshot-cifar10/0.tar", members)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (tmp_path / "tars/zeroshot-cifar10/classnames.txt").write_text("\n".join(names))
    assert run(tmp_path / "zeroshot-cifar10") == run(tmp_path / "tars/zeroshot-cifar10")


def folders(root, names):
    """A picture in each folder, in one of them two, and one that is hidden."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "image_0001.jpg").write_bytes(png(i))
    (root / names[-1] / "image_0002.jpg").write_bytes(png(99))


def objectnet(root):
    (root / "folder_to_objectnet_label.json").write_text('{"mug_b": "Mug", "bat_a": "Bat", "pen_c": "Pen"}')
    (root / "objectnet_to_imagenet_1k.json").write_text('{"Pen": "a pen", "Bat": "a bat; a club"}')
    (root / "pytorch_to_imagenet_2012_id.json").write_text('{"5": 0, "6": 1, "7": 2}')
    (root / "imagenet_to_label_2012_v2").write_text("a bat\na pen\na club\n")
    folders(root / "objectnet-1.0/images", ["bat_a", "mug_b", "pen_c"])


def voc2007(root):
    """Two photographs with three objects."""
    base = root / "VOCdevkit/VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    (base / "ImageSets/Main/test.txt").write_text("000001\n000002\n")
    (base / "ImageSets/Main/aeroplane_test.txt").write_text("000001 -1\n000002  1\n")
    for i, objects in ((1, [("dog", 1, 2, 9, 31), ("tvmonitor", 3, 3, 30, 20)]), (2, [("aeroplane", 5, 6, 7, 8)])):
        boxes = [
            f"<object><name>{name}</name><bndbox>"
            + "".join(f"<{side}>{n}</{side}>" for side, n in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            + "</bndbox></object>"
            for name, *box in objects
        ]
        (base / f"Annotations/{i:06d}.xml").write_text(f"<annotation>{''.join(boxes)}</annotation>")
        (base / f"JPEGImages/{i:06d}.jpg").write_bytes(png(i))


LAYOUTS = {
    "caltech101": lambda root: folders(root / "caltech101/101_ObjectCategories", [f"c{i:03d}" for i in range(102)]),
    "eurosat": lambda root: folders(root / "eurosat/2750", [f"c{i}" for i in range(10)]),
    "fer2013": lambda root: folders(root / "test", [f"c{i}" for i in range(7)]),
    "imagenet-a": lambda root: folders(root, list(shipped.imagenet_subset("imagenet-a"))),
    "imagenet-r": lambda root: folders(root, list(shipped.imagenet_subset("imagenet-r"))),
    "objectnet": objectnet,
    "voc2007": voc2007,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_unpacked_set_is_read_as_clip_benchmark_reads_it(name, tmp_path, clip_benchmark):
    """Classes, labels and pixels, in the same order; a folder of another class is refused, a hidden file left out."""

    def pixels(image):
        return np.asarray(image.convert("RGB")).tobytes()

    LAYOUTS[name](tmp_path)
    theirs = clip_benchmark("datasets.builder").build_dataset(
        name, root=str(tmp_path), transform=pixels, split="test", download=False
    )
    mine = open_unpacked(tmp_path, name, pixels)
    assert list(mine.classes) == list(theirs.classes)
    assert [mine[i] for i in range(len(mine))] == [theirs[i] for i in range(len(theirs))]
    templates = shipped.shipped_templates()
    assert templates.get(name, templates["imagenet1k"]) == theirs.templates
    if name != "voc2007":
        first = next(tmp_path.rglob("image_0001.jpg"))
        first.with_name("._a.jpg").write_bytes(b"")
        assert len(open_unpacked(tmp_path, name, pixels)) == len(mine)
    if name.startswith("imagenet"):
        first.parent.rename(first.parent.with_name("n00000000"))
        with pytest.raises(UserError, match="has a folder n00000000, which is no class of"):
            open_unpacked(tmp_path, name, pixels)


def test_a_part_of_imagenet_is_refused(run, tmp_path):
    """A reader numbers the folders it finds: with two of ImageNet's 1000, goldfish would be called tench."""
    for wnid in ("n01443537", "n01530575"):
        (tmp_path / "zeroshot-imagenet1k/val" / wnid).mkdir(parents=True)
        (tmp_path / "zeroshot-imagenet1k/val" / wnid / "1.JPEG").write_bytes(png())
    with pytest.raises(UserError, match="has 2 classes' folders, but imagenet1k 1000"):
        run(tmp_path / "zeroshot-imagenet1k")


def test_nothing_is_downloaded(run, tmp_path, monkeypatch):
    """A folder without data is an error that lists the sets; no reader that could fetch is ever called."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
    for name in ("zeroshot-imagenetv2", "zeroshot"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=r"neither test/\*.tar nor \*.tar; .* NAME one of caltech101, cars"):
            run(tmp_path / name)
    for name in UNPACKED:
        (tmp_path / f"zeroshot-{name}").mkdir()
        with pytest.raises(UserError, match=f"is not {name} as it is published"):
            run(tmp_path / f"zeroshot-{name}")


@pytest.mark.parametrize("kind", ["multilabel", "retrieval"])
def test_other_kinds_of_sets_are_refused(run, copy, kind):
    """A multi-label set has no top-1 outcome; it is not given a number."""
    folder = copy("z")
    (folder / "dataset_type.txt").write_text(f"{kind}\n")
    with pytest.raises(UserError, match=f"says {kind}: only one label an image"):
        run(folder)


IMAGE, LABEL = ("a.png", png()), ("a.cls", b"0")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"<html>"), LABEL], "sample a is not a readable image"),
        ([("a.png", png()[:200]), LABEL], "sample a is not a readable image"),
        ([IMAGE], "must have one image and .cls; it has png"),
        ([LABEL], "must have one image and .cls; it has cls"),
        ([IMAGE, ("a.npy", b"")], "must have one image and .cls; it has png, npy"),
        ([IMAGE, ("a.cls", b"36")], "has class '36', but there are 36 names"),
        ([IMAGE, ("a.cls", b"-1")], "has class '-1'"),
        ([IMAGE, ("a.cls", b"cat")], "has class 'cat'"),
        ([IMAGE, ("a.cls", b"\xff")], "not UTF-8"),
        ([IMAGE, LABEL, ("b.png", png()), ("b.cls", b"0"), IMAGE, LABEL], "sample a occurs twice"),
        ([("../a.png", png()), ("../a.cls", b"0")], "is refused: unsafe name"),
        ([], "holds no images"),
    ],
)
def test_a_broken_sample_is_named(run, copy, members, message):
    """Each fault of a tar is a UserError that says where; nothing is skipped."""
    folder = copy("z")
    write_tar(folder / "test/0.tar", members)
    with pytest.raises(UserError, match=message):
        run(folder)


def test_a_tail_of_zeros_is_a_damaged_tar(run, copy):
    """As a download that broke off leaves it in a file that has its size already: 29 of 36 images would be a set."""
    tar = copy("z") / "test/0.tar"
    keys = list(dict.fromkeys(location.key for location in locate(tar, ("cls",))))
    tail = next(each.offset for each in locate(tar, ("cls", "png")) if each.key == keys[29]) - tarfile.BLOCKSIZE
    data = tar.read_bytes()
    tar.write_bytes(data[:tail] + bytes(len(data) - tail))
    with pytest.raises(UserError, match="0.tar is damaged, get it again: .* bytes of zeros from byte"):
        run(tar.parents[1])


def test_a_set_that_is_not_whole_is_refused(run, copy):
    """A tar cut short, or fewer tars than nshards.txt says, is not quietly a smaller set."""
    folder = copy("z")
    data = (folder / "test/0.tar").read_bytes()
    (folder / "test/0.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="0.tar is damaged, get it again"):
        run(folder)
    (folder / "test/nshards.txt").write_text("2\n")
    with pytest.raises(UserError, match="has 1 tars, but its nshards.txt says '2'"):
        run(folder)


@pytest.mark.parametrize("template", ["a photo", "a {} photo", "{0} {c}", "{c.__class__}", "{c!r}", "{c:>9}", "{c"])
def test_templates_are_data_not_code(run, copy, template):
    """A template holds {c} and no other field that str.format would look up."""
    folder = copy("z")
    (folder / TEMPLATES).write_text(f"a {{c}}\n{template}\n")
    with pytest.raises(UserError, match="must hold {c} for the class"):
        run(folder)


def test_an_empty_class_name_is_refused(run, copy):
    """Dropping it would give every later class another's name."""
    folder = copy("z")
    (folder / "classnames.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match="classnames.txt: line 2 is empty"):
        run(folder)


def test_fp32(tiny):
    """Both towers run without autocast, which rounds to bfloat16 on a CPU and flips outcomes."""
    clip, seen = load_clip(tiny.backbones / "clip"), []
    for tower in (clip.model.visual, clip.model.transformer):
        tower.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    zeroshot.run(clip, tiny.benchmarks / "zeroshot", batch_size=16)
    assert seen and not any(seen)
