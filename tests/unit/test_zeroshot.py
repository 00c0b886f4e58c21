"""Zero-shot classification: clip-benchmark is the oracle, and every layout gives the same outcomes."""

import io
import pickle
import shutil
import tarfile
from hashlib import md5

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from un2clip.datasets.random_access import locate
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import zeroshot
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


def test_equals_clip_benchmarks_own_number(tiny, run):
    """The score is acc1, and the mean over types mean_per_class_recall, of clip-benchmark's reader and evaluate."""
    clip, folder = load_clip(tiny.backbones / "clip"), tiny.benchmarks / "zeroshot"
    data = build_dataset("wds/x", root=str(folder), transform=clip.preprocess)
    theirs = zeroshot_classification.evaluate(
        clip.model, DataLoader(data.batched(5), batch_size=None), clip.tokenize, data.classes, data.templates,
        device="cpu", amp=False,
    )  # fmt: skip
    items = run(folder)
    assert np.mean([item.value for item in items]) == pytest.approx(theirs["acc1"], abs=1e-12)
    types = [np.mean([i.value for i in items if i.type == name]) for name in {item.type for item in items}]
    assert np.mean(types) == pytest.approx(theirs["mean_per_class_recall"], abs=1e-12)


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
    """zeroshot-mnist without its texts is scored by those that clip-benchmark ships for mnist."""
    write_tar(
        tmp_path / "zeroshot-mnist/a.tar",
        [(f"{i}.{e}", c) for i in range(4) for e, c in (("png", png(i)), ("cls", b"7"))],
    )
    assert {item.type for item in run(tmp_path / "zeroshot-mnist")} == {"7"}
    write_tar(tmp_path / "zeroshot-birds/a.tar", [("a.png", png()), ("a.cls", b"1")])
    with pytest.raises(
        UserError, match=r"no .*zeroshot-birds/classnames.txt, and clip-benchmark ships none for 'birds'"
    ):
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


def test_unpacked_data_by_clip_benchmarks_reader(run, tmp_path, monkeypatch):
    """CIFAR-10 as published gives what the same images give from tars; a file with another check sum is refused."""
    pixels, sums = cifar10(tmp_path / "zeroshot-cifar10")
    with pytest.raises(UserError, match="is not cifar10 as clip-benchmark reads it .*corrupted"):
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


def test_a_part_of_imagenet_is_refused(run, tmp_path):
    """A reader numbers the folders it finds: with two of ImageNet's 1000, goldfish would be called tench."""
    for wnid in ("n01443537", "n01530575"):
        (tmp_path / "zeroshot-imagenet1k/val" / wnid).mkdir(parents=True)
        (tmp_path / "zeroshot-imagenet1k/val" / wnid / "1.JPEG").write_bytes(png())
    with pytest.raises(UserError, match="has 2 classes' folders, but imagenet1k 1000"):
        run(tmp_path / "zeroshot-imagenet1k")


def test_nothing_is_downloaded(run, tmp_path, monkeypatch):
    """A folder without data is an error that lists the sets; no reader that could fetch is ever called."""
    monkeypatch.setattr("clip_benchmark.datasets.builder.call", lambda *_, **__: pytest.fail("a shell was called"))
    for name in ("zeroshot-imagenetv2", "zeroshot"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=r"neither test/\*.tar nor \*.tar; .* NAME one of caltech101, cars"):
            run(tmp_path / name)
    for name in ("imagenet1k", "imagenet-a", "objectnet", "fer2013", "voc2007", "sun397"):
        (tmp_path / f"zeroshot-{name}").mkdir()
        with pytest.raises(UserError, match=f"is not {name} as clip-benchmark reads it"):
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
