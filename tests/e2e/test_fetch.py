"""Fetching: from a hub on this machine and from folders; what is incomplete, changed or not ours to fetch is said."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.hub import COMMIT, Hub, served
from un2clip.__main__ import main
from un2clip.errors import UserError
from un2clip.evaluation.readers import data_sha256
from un2clip.sources.benchmarks import fetch
from un2clip.sources.catalogue import catalogue, check, get_entry, table
from un2clip.sources.hub import HUB_ID

ROOT = Path(__file__).parents[2]
FLICKR = "datasets/clip-benchmark/wds_flickr30k/"


def tar_of(first: int, n: int) -> bytes:
    """A webdataset tar of n samples, each an image and its captions."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(first, first + n):
            for name in (f"s{i:07d}.jpg", f"s{i:07d}.txt"):
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
    return file.getvalue()


def flickr() -> dict[str, bytes]:
    """The hub's files of retrieval-flickr30k: five tars of 200 samples, and a split that nobody asks for."""
    tars = {f"test/{i}.tar": tar_of(200 * i, 200) for i in range(5)}
    made = tars | {"dataset_type.txt": b"retrieval\n", "test/nshards.txt": b"5", "train/0.tar": b"large"}
    return {FLICKR + name: content for name, content in made.items()}


def wanted() -> dict[str, bytes]:
    return {name.removeprefix(FLICKR): content for name, content in flickr().items() if "train" not in name}


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = Hub(flickr())
    with served(made, monkeypatch, str(tmp_path / "home")) as made.address:
        yield made


def get(to: Path, name="retrieval-flickr30k", *, given=None, revision="") -> None:
    fetch(name, to=to, given=given, revision=revision)


def test_the_command_fetches_locks_and_says_the_terms_first(hub, tmp_path):
    """`un2clip fetch`, a process of its own with HF_ENDPOINT: the hub's bytes, without train/, and their hashes."""
    to = tmp_path / "data/flickr"
    command = [sys.executable, "-m", "un2clip", "fetch", "retrieval-flickr30k", f"--to={to}"]
    place = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "other"), "UN2CLIP_TRACKING": "off"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_below(to) == wanted()
    lock = yaml.safe_load((tmp_path / "data/flickr.lock.yaml").read_text())
    assert lock["revision"] == COMMIT and lock["sha256"].keys() == wanted().keys()
    order = [done.stdout.index(text) for text in ("licence", "non-commercial", "1000 samples\n", "nobody has vouched")]
    assert order == sorted(order)
    assert f"api/datasets/clip-benchmark/wds_flickr30k/revision/{catalogue()['retrieval-flickr30k'].revision}" in (
        path for _, path, _ in hub.requests
    )


def test_what_is_there_is_verified_and_not_fetched_again(hub, tmp_path):
    """The second call asks the hub nothing; a byte changed since is named."""
    get(tmp_path / "d")
    asked = len(hub.requests)
    get(tmp_path / "d")
    assert len(hub.requests) == asked
    (tmp_path / "d/test/nshards.txt").write_text("6")
    with pytest.raises(UserError, match=r"test/nshards.txt is not what was pinned"):
        get(tmp_path / "d")


def test_other_bytes_than_the_lock_are_refused(hub, tmp_path):
    """A hub that answers otherwise than at the first fetch is not believed, and leaves nothing behind."""
    get(tmp_path / "d")
    for folder in ("d", "home"):
        shutil.rmtree(tmp_path / folder)
    hub.files[FLICKR + "test/3.tar"] = tar_of(1600, 200)
    with pytest.raises(UserError, match=r"test/3.tar is not what was pinned"):
        get(tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.lock.yaml", "home"]
    with pytest.raises(UserError, match=f"has revision {COMMIT}, not main; to trust another one, delete it"):
        get(tmp_path / "d", revision="main")


def test_an_interrupted_download_goes_on(hub, tmp_path, monkeypatch):
    """The rest of the file is asked for, and the set is whole."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut = "test/2.tar"
    get(tmp_path / "d")
    half = len(wanted()["test/2.tar"]) // 2
    assert [(path[-10:], what) for _, path, what in hub.requests if what] == [("test/2.tar", f"bytes={half}-")]
    assert files_below(tmp_path / "d") == wanted()


def test_a_folder_of_the_users_is_held_to_the_lock_too(hub, tmp_path):
    """Where a lock lies beside the name, --from must bring the same bytes as the hub did."""
    get(tmp_path / "d")
    (tmp_path / "d").rename(tmp_path / "mine")
    get(tmp_path / "d", given=tmp_path / "mine")
    assert files_below(tmp_path / "d") == wanted()
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "mine/test/0.tar").write_bytes(tar_of(3000, 200))
    with pytest.raises(UserError, match="test/0.tar is not what was pinned"):
        get(tmp_path / "d", given=tmp_path / "mine")


def test_an_incomplete_hub_leaves_no_folder(hub, tmp_path):
    """200 samples fewer than published are not the data set; no folder and no lock say otherwise."""
    hub.files[FLICKR + "test/4.tar"] = tar_of(800, 1)
    with pytest.raises(UserError, match=r"801 samples in test/\*.tar, not 1000"):
        get(tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("flickr", "unknown data set 'flickr'; known: mmvp_vlm, "),
        ("zeroshot-cifar10", "no revision of clip-benchmark/wds_vtab-cifar10 is known to us, and none is guessed: "
                             ".*/commits/main and give --revision"),
        ("segmentation-cityscapes", "needs an account: get it at https://www.cityscapes-dataset.com"),
        ("zeroshot-imagenet1k", "needs an account: get it at https://image-net.org"),
        ("sugarcrepe", "is not on the hub: get it at .*, lay it out as above, and run `un2clip fetch sugar"),
    ],
)  # fmt: skip
def test_what_needs_the_user_says_so(tmp_path, capsys, name, says):
    """One line that names the fix, with the terms above it."""
    with pytest.raises(UserError, match=says):
        get(tmp_path / "d", name)
    assert not list(tmp_path.iterdir())
    assert (name == "flickr") == ("licence" not in capsys.readouterr().out)


def test_a_revision_of_the_users_is_taken_and_locked(hub, tmp_path):
    """Where we know no commit, the user's counts; what it was is in the lock."""
    root = "datasets/clip-benchmark/wds_vtab-cifar10/"
    names = {
        "classnames.txt": b"cat\n",
        "zeroshot_classification_templates.txt": b"a {c}\n",
        "test/0.tar": tar_of(0, 9),
    }
    hub.files |= {root + name: content for name, content in names.items()}
    with pytest.raises(UserError, match="9 samples in .*, not 10000"):
        get(tmp_path / "d", "zeroshot-cifar10", revision=COMMIT)
    hub.files[root + "test/0.tar"] = tar_of(0, 10000)
    shutil.rmtree(tmp_path / "home")
    get(tmp_path / "d", "zeroshot-cifar10", revision=COMMIT)
    assert yaml.safe_load((tmp_path / "d.lock.yaml").read_text())["revision"] == COMMIT


@pytest.mark.parametrize(
    ("commit", "says"),
    [
        (catalogue()["mmvp_vlm"].revision, "commit 69218ac4ba2e is the catalogue's\n"),
        (
            "211372d" + "0" * 33,
            "commit 211372d00000 is not the catalogue's 69218ac4ba2e: it uploads Questions.csv anew",
        ),
        (COMMIT, "commit 0123456789ab is not known to us; 69218ac4ba2e is\n"),
    ],
)
def test_both_revisions_of_mmvp_are_known(hub, tmp_path, monkeypatch, capsys, commit, says):
    """Whatever commit the hub's main is: it is said what is known of it, and its lock has it and every hash."""
    monkeypatch.setattr("tests.hub.COMMIT", commit)
    root, names = "datasets/MMVP/MMVP_VLM/", [f"MLLM_VLM Images/Color/{i}.jpg" for i in range(1, 271)]
    hub.files |= {root + name: b"x" for name in names} | {root + "Questions.csv": commit.encode()}
    get(tmp_path / "mmvp_vlm-main", "mmvp_vlm", revision="main")
    said = capsys.readouterr().out
    assert says in said and "its benchmark is mmvp_vlm-main" in said
    lock = yaml.safe_load((tmp_path / "mmvp_vlm-main.lock.yaml").read_text())
    assert lock["revision"] == commit and lock["sha256"].keys() == {"Questions.csv", *names}


@pytest.fixture
def voc(tmp_path) -> Path:
    """VOC2012's layout with all its names, and nothing in the files."""
    folder = tmp_path / "voc"
    names = [f"2007_{i:06d}" for i in range(1449)]
    for each in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / "VOC2012" / each).mkdir(parents=True)
    (folder / "VOC2012/ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    for name in names:
        (folder / f"VOC2012/JPEGImages/{name}.jpg").touch()
        (folder / f"VOC2012/SegmentationClass/{name}.png").touch()
    return folder


def test_the_checker_names_what_is_missing(voc, capsys):
    """Complete: counts. Five masks gone: how many, and the first three. A list of another length: both numbers."""
    assert main(["fetch", "segmentation-voc20", f"--check={voc}"]) == 0
    assert "has the layout of segmentation-voc20: 2898 files" in capsys.readouterr().out
    for i in range(5):
        (voc / f"VOC2012/SegmentationClass/2007_{i + 100:06d}.png").unlink()
    assert main(["fetch", "segmentation-voc20", f"--check={voc}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "5 of 2898 files are missing: VOC2012/SegmentationClass/2007_000100.png, " in line
    assert line.endswith("2007_000102.png and 2 more")
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").write_text("2007_000000\n")
    with pytest.raises(UserError, match="1 ids of .*val.txt, not 1449"):
        check(get_entry("segmentation-voc21"), voc)
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match="has no VOC2012/ImageSets/Segmentation/val.txt"):
        check(get_entry("segmentation-voc21"), voc)


def test_data_of_another_hash_are_refused(voc):
    """Names and counts are right, and the bytes are another set's; where no hash is known, the found one is printed."""
    entry = get_entry("segmentation-voc20")
    assert check(entry, voc).endswith(f"\ndata_sha256 {data_sha256(voc)}")
    named = dataclasses.replace(entry, data_sha256=data_sha256(voc))
    assert check(named, voc) == check(entry, voc)
    (voc / "VOC2012/JPEGImages/2007_000007.jpg").write_bytes(b"another picture")
    with pytest.raises(UserError, match=f"its files hash to {data_sha256(voc)[:12]}, not {named.data_sha256[:12]}"):
        check(named, voc)


def test_ids_come_from_the_images_too(tmp_path):
    """Cityscapes has no list: every image of val/<city> must have its mask."""
    for i in range(500):
        city = tmp_path / f"leftImg8bit/val/city{i % 3}"
        city.mkdir(parents=True, exist_ok=True)
        (city / f"{i}_leftImg8bit.png").touch()
    with pytest.raises(UserError, match="500 of 500 files are missing: gtFine/val/city0/0_gtFine_labelTrainIds.png"):
        check(get_entry("segmentation-cityscapes"), tmp_path)


def test_a_folder_of_the_users_is_copied_and_dvc_points_to_it(voc, tmp_path):
    """Inside a DVC repository the pointer appears beside the copy; the user's own folder stays as it was."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    before = files_below(voc)
    get(tmp_path / "data/voc20", "segmentation-voc20", given=voc)
    assert files_below(tmp_path / "data/voc20") == before == files_below(voc)
    pointer = yaml.safe_load((tmp_path / "data/voc20.dvc").read_text())["outs"][0]
    assert pointer["path"] == "voc20" and pointer["nfiles"] == len(before)
    with pytest.raises(UserError, match="cannot be copied into itself"):
        get(voc / "copy", "segmentation-voc20", given=voc)


def test_every_entry_is_whole_and_names_its_source():
    """Hub ids and commits have their form, everything else says where it is got; facts say where they are from."""
    for name, entry in catalogue().items():
        assert (
            (entry.kind == "hub")
            == bool(HUB_ID.fullmatch(entry.location))
            == bool(entry.layout.fetched and not entry.url)
        ), name
        assert re.fullmatch(r"([0-9a-f]{40})?", entry.revision), name
        assert re.fullmatch(r"([0-9a-f]{64})?", entry.data_sha256), name
        assert entry.page.startswith(("https://", "http://host.robots.ox.ac.uk/")) and entry.licence and entry.terms, (
            name
        )
        assert re.search(r"\[(card|mteb|code|known)\]", entry.source), name


def test_the_readme_of_data_has_the_catalogue():
    """data/README.md shows the table that `un2clip fetch` prints."""
    assert table() in (ROOT / "data/README.md").read_text()
