"""One door for image files: every reader is offered a file that is another kind than its name says."""

import ast
import dataclasses
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from un2clip.datasets.images import check_image, open_image, published_formats_only
from un2clip.datasets.random_access import CorruptSample, read_image
from un2clip.datasets.shards import samples
from un2clip.datasets.tars import Rejected
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.models.clip import Clip, load_clip

ROOT = Path(__file__).parents[2]
Offer = Callable[[bytes, Path], object]


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def run(tiny) -> Callable[[str, Path], object]:
    """Score a folder by the benchmark whose data it holds."""
    clip: Clip = load_clip(tiny.backbones / "clip")
    params = dataclasses.replace(tiny.section(Evaluate, "evaluate"), batch_size=4)
    return lambda name, folder: get_benchmark(name, "clip").run(clip, folder, params)


@pytest.fixture
def readers(tiny, run) -> dict[str, Offer]:
    """Everything that reads an image file: a function of the file's bytes and an empty folder."""

    def spoilt(benchmark: str, pattern: str) -> Offer:
        def offer(content: bytes, folder: Path) -> object:
            shutil.copytree(tiny.benchmarks / benchmark, folder / benchmark)
            next(path for path in sorted((folder / benchmark).rglob(pattern))).write_bytes(content)
            return run(benchmark, folder / benchmark)

        return offer

    def sugarcrepe(content: bytes, folder: Path) -> object:
        (folder / "images").mkdir()
        (folder / "images/a.jpg").write_bytes(content)
        (folder / "add_att.json").write_text('{"0": {"filename": "a.jpg", "caption": "a", "negative_caption": "b"}}')
        return run("sugarcrepe", folder)

    def zeroshot(content: bytes, folder: Path) -> object:
        (folder / "classnames.txt").write_text("red\nblue\n")
        (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
        write_tar(folder / "test/0.tar", {"a.jpg": content, "a.cls": b"0"})
        return run("zeroshot", folder)

    def unpacked(content: bytes, folder: Path) -> object:
        for name, file in (("negative", content), ("positive", encoded("PNG"))):
            image = folder / f"zeroshot-renderedsst2/rendered-sst2/test/{name}/a.png"
            image.parent.mkdir(parents=True)
            image.write_bytes(file)
        return run("zeroshot-renderedsst2", folder / "zeroshot-renderedsst2")

    def retrieval(content: bytes, folder: Path) -> object:
        write_tar(folder / "0.tar", {f"{name}.{e}": c for name in "ab" for e, c in (("jpg", content), ("txt", b"a"))})
        return run("retrieval", folder)

    return {
        "ingest": lambda content, folder: check_image(content, short_side_px=32, max_megapixels=1, max_aspect_ratio=20),
        "shards in order": lambda content, folder: list(
            samples(write_tar(folder / "0.tar", {"a.jpg": content, "a.txt": b"a"}).parent)
        ),
        "shards at random": lambda content, folder: read_image(write_tar(folder / "0.tar", {"a.jpg": content}), 0),
        "pairs": spoilt("mmvp_vlm", "*.jpg"),
        "photographs": spoilt("segmentation", "*.jpg"),
        "masks": spoilt("segmentation", "*.png"),
        "sugarcrepe": sugarcrepe,
        "zeroshot": zeroshot,
        "zeroshot, unpacked": unpacked,
        "retrieval": retrieval,
    }


NAMES = (
    "ingest", "shards in order", "shards at random", "pairs", "photographs", "masks", "sugarcrepe", "zeroshot",
    "zeroshot, unpacked", "retrieval",
)  # fmt: skip


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("kind", ["EPS", "BMP", "TIFF"])
def test_another_kind_of_file_is_refused_whatever_its_name(
    readers: dict[str, Offer], tmp_path: Path, monkeypatch, kind: str, reader: str
) -> None:
    """EPS, BMP and TIFF under the name of a JPEG or PNG: each reader says which file it is, and starts no program."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    with pytest.raises((Rejected, CorruptSample, UserError), match="not JPEG|identify|sample a|image 0|not a read"):
        readers[reader](encoded(kind), tmp_path)
    assert not started


@pytest.mark.parametrize("reader", [name for name in NAMES if name not in ("pairs", "photographs", "masks")])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_kinds_are_read(readers: dict[str, Offer], tmp_path: Path, kind: str, reader: str) -> None:
    """The same way with a file that may be opened: what was refused above was its kind, and nothing else."""
    assert readers[reader](encoded(kind), tmp_path)


def test_pillow_is_asked_in_one_place() -> None:
    """`Image.open` is called in datasets/images.py alone, so no reader can forget which kinds are opened.

    And in the code of a registered version, which runs without un2clip; tests/e2e/test_served.py offers it the others.
    """
    calls = {
        path.relative_to(ROOT / "src/un2clip").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "open" and isinstance(node.value, ast.Name)
        if node.value.id == "Image"
    }
    assert calls == {"datasets/images.py", "tracking/served.py"}


def test_pillows_own_list_is_put_back() -> None:
    """Within, Pillow knows five kinds; afterwards all of them, also where an error ended it."""
    before = list(Image.ID)
    with pytest.raises(ZeroDivisionError), published_formats_only():
        assert set(Image.ID) == {"JPEG", "PNG", "WEBP", "GIF", "PPM"}
        assert Image.open(io.BytesIO(encoded("PPM"))).format == "PPM"
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(encoded("BMP")))
        raise ZeroDivisionError
    assert set(before) <= set(Image.ID) and Image.open(io.BytesIO(encoded("BMP"))).format == "BMP"
    with pytest.raises(Image.UnidentifiedImageError):
        open_image(encoded("BMP"))
