"""Shards are read from a bucket, of a real S3 server on this machine: the same batches, and a few copies at a time."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from tests.s3 import BUCKET
from tests.unit.test_disks import small  # noqa: F401  # a fixture
from tests.unit.test_ingest import DEFAULTS, good, write_tar
from un2clip.config import build
from un2clip.datasets import copies, loader, remote
from un2clip.datasets.caption_bank import captions
from un2clip.datasets.random_access import metadata_of
from un2clip.datasets.shards import digest, read_index
from un2clip.errors import DiskRefused, StoreRefused, UserError
from un2clip.stages import run_stage
from un2clip.stages.ingest import Ingest, ingest

SHARDS, SAMPLES = 6, 31


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Six shards of five or six pictures with captions, and a held-out one."""
    folder = tmp_path_factory.mktemp("made")
    write_tar(folder / "images/train/0.tar", *(good(f"{n:02d}", n) for n in range(SAMPLES)))
    write_tar(folder / "images/heldout/0.tar", *(good(f"h{n}", n) for n in range(40, 44)))
    ingest(build(Ingest, DEFAULTS | {"samples_per_shard": 6}, "ingest"), images=folder / "images", shards=folder / "s")
    return folder / "s"


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where copies lie; nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    copies._folder.cache_clear()
    yield folder
    copies._folder.cache_clear()
    assert not list(folder.rglob("*.tar"))


@pytest.fixture
def bucket(store, shards, temporary) -> Path:
    """The same shards at an address."""
    store.put(f"{shards}/", f"{BUCKET}/shards/", recursive=True)
    return Path(f"s3://{BUCKET}/shards")


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of what is copied."""
    names, fetch = list[str](), remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda tar, *more: (names.append(tar.name), fetch(tar, *more)))
    return names


def reader(shards: Path, ahead: int = 2) -> loader.Reader:
    view = loader.generator_view(8)
    found = loader.open_split(shards, "train", view, view)
    return loader.Reader(**vars(found) | {"ahead": ahead, "crop": (0.3, 0.9)})


def batches(shards: Path, start: int = 0, count: int = 12, ahead: int = 2, workers: int = 0) -> list[loader.Batch]:
    """Two epochs and more, in a shuffled order."""
    opened = reader(shards, ahead)
    order = loader.batched(loader.shuffled(opened.sizes, 3, start), 7)
    return list(itertools.islice(loader.read(opened, order, workers), count))


def same(one: list[loader.Batch], other: list[loader.Batch]) -> bool:
    return [batch["keys"] for batch in one] == [batch["keys"] for batch in other] and all(
        torch.equal(a[name], b[name])
        for a, b in zip(one, other, strict=True)
        for name in ("pixel_values", "images", "valid")
    )


@pytest.mark.parametrize(("ahead", "workers"), [(0, 0), (2, 2), (9, 0)])
def test_the_batches_are_those_of_a_folder(bucket, shards, fetched, ahead: int, workers: int) -> None:
    """From the beginning and from a later step; what fits into the window is copied once, the rest once an epoch."""
    expected = batches(shards, workers=0)
    assert read_index(bucket) == read_index(shards) and digest(bucket) == digest(shards)
    assert same(batches(bucket, ahead=ahead, workers=workers), expected)
    epoch = sorted(shard.name for shard in read_index(shards).splits["train"])
    assert len(epoch) == SHARDS
    assert sorted(fetched[:SHARDS]) == epoch and (
        len(fetched) == SHARDS if ahead > SHARDS else sorted(fetched)[:2] == epoch[:1] * 2
    )
    assert same(batches(bucket, start=5 * 7, count=7, ahead=ahead), expected[5:])


def test_few_copies_lie_there_at_once(bucket, temporary, fetched) -> None:
    """Those of the batch that is read and two ahead; the second is begun while the first is read."""
    opened, most, begun = reader(bucket), 0, 0
    order = loader.batched(loader.shuffled(opened.sizes, 3), 3)
    for number, _ in enumerate(itertools.islice(loader.read(opened, order, 0), 20)):
        if number == 1:
            begun = len(fetched)
        most = max(most, len(list(temporary.rglob("*.tar"))))
    assert 3 <= most <= 4 and begun >= 2


def test_captions_and_metadata_are_those_of_a_folder(bucket, shards, fetched) -> None:
    assert list(captions(bucket, 5)) == list(captions(shards, 5)) and len(fetched) == SHARDS
    assert list(metadata_of(bucket, "heldout")) == list(metadata_of(shards, "heldout"))


def test_processes_share_a_copy(bucket, shards, fetched) -> None:
    """Two that want it at once copy it once; who ends first takes it from nobody; the last deletes it."""
    tar, shard = bucket / "train/00000.tar", read_index(shards).splits["train"][0]
    inside, leave, found = threading.Barrier(3), [threading.Event(), threading.Event()], list[bytes]()

    def hold(number: int) -> None:
        with copies.held(tar, shard) as path:
            inside.wait(60)
            leave[number].wait(60)
            found.append(path.read_bytes())

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    assert fetched == ["00000.tar"]
    for thread, event in zip(threads, leave, strict=True):
        event.set()
        thread.join()
    assert found == [(shards / "train/00000.tar").read_bytes()] * 2 and not copies.near(tar, shard).exists()


def test_what_a_killed_process_left_is_deleted(bucket, shards, temporary) -> None:
    """By the next call; a copy that a living process holds stays."""
    tar, shard = bucket / "train/00000.tar", read_index(shards).splits["train"][0]
    left = temporary / f"un2clip-shards-{os.getuid()}" / "0123.tar"
    with copies.held(tar, shard) as path:
        left.write_bytes(b"half")
        script = f"import sys; from un2clip.datasets import copies; copies._folder(copies.Path({str(temporary)!r}))"
        subprocess.run([sys.executable, "-c", script], check=True)
        assert path.is_file() and not left.exists()


def test_a_folder_of_another_user_is_refused(temporary) -> None:
    (temporary / f"un2clip-shards-{os.getuid()}").symlink_to(temporary)
    with pytest.raises(UserError, match=r"un2clip-shards-\d+, for copies of shards, is another user's; set TMPDIR"):
        copies._folder(temporary)


@pytest.mark.parametrize(
    ("act", "workers", "said"),
    [
        ("other bytes", 0, r"^s3://{}/shards/train/00003.tar is not what `un2clip ingest` wrote: .*; get it again"),
        ("absent later", 2, r"^s3://{}/shards/train/00003.tar is not there \(.*\); name another, or look at"),
        ("absent", 0, r"^s3://{}/shards/train/00003.tar is absent or not the \d+ bytes of s3://{}/shards/index"),
        ("absent later", 0, r"^s3://{}/shards/train/00003.tar is not there \(.*\); name another, or look at"),
        ("no index", 0, r"^s3://{}/shards/index.json is not there \(.*\); name another, or look at"),
        ("no bucket", 0, r"^s3://nowhere/shards/index.json is not there \(.*\); name another, or look at"),
        ("silent", 0, r"^s3://{}/shards/train/\d+.tar: the store does not answer \(.*\); look at AWS_ENDPOINT_URL"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(bucket, shards, store, monkeypatch, act: str, workers: int, said: str) -> None:
    """In the middle of a training it is no UserError that ends it for good: what was done is kept."""
    tar = f"{BUCKET}/shards/train/00003.tar"
    opened = reader(bucket)
    if act == "other bytes":
        content = bytearray((shards / "train/00003.tar").read_bytes())
        content[600] ^= 1
        store.pipe(tar, bytes(content))
    elif act.startswith("absent"):
        store.rm(tar)
    elif act == "no index":
        store.rm(f"{BUCKET}/shards/index.json")
    elif act == "no bucket":
        bucket = Path("s3://nowhere/shards")
    with socket.socket() as silent, pytest.raises(UserError, match=said.replace("{}", BUCKET)) as refused:
        if act == "silent":
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
            monkeypatch.setattr(type(store), "read_timeout", 0.2)
            monkeypatch.setattr(type(store), "retries", 1)
            remote._store.cache_clear()
        elif act != "other bytes" and act != "absent later":
            opened = reader(bucket)
        list(itertools.islice(loader.read(opened, loader.batched(loader.in_order(opened.sizes), 7), workers), 9))
    assert "\n" not in str(refused.value) and isinstance(refused.value, StoreRefused) == (act != "absent")


def test_a_copy_that_fills_the_disk_is_taken_away(store, tmp_path, monkeypatch, small) -> None:  # noqa: F811
    write_tar(tmp_path / "images/0.tar", good("a"), [good("b")[0], ("b.txt", b"x" * 2 * 2**20)])
    section = build(Ingest, DEFAULTS | {"heldout_fraction": 0.0}, "ingest")
    ingest(section, images=tmp_path / "images", shards=tmp_path / "large")
    store.put(f"{tmp_path}/large/", f"{BUCKET}/large/", recursive=True)
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    copies._folder.cache_clear()
    with pytest.raises(DiskRefused, match=r"^\S*small\S*: no space is left .* wanted\); make room, then the same"):
        batches(Path(f"s3://{BUCKET}/large"))
    assert not list(small.rglob("*.tar"))


def test_the_stages_make_the_same_of_them(tiny, store, temporary, tmp_path) -> None:
    """Latents, a training and losses, byte for byte; the lineage is the same."""
    store.put(f"{tiny.shards}/", f"{BUCKET}/tiny/", recursive=True)
    common = {"backbones": tiny.backbones, "device": "cpu"}
    shutil.copytree(tiny.latents, tmp_path / "here/latents")
    there = f"s3://{BUCKET}/tiny"
    run_stage("latents", tiny.params["latents"], **common, shards=there, latents=tmp_path / "there/latents")
    for name, where in (("here", tiny.shards), ("there", there)):
        to = tmp_path / name
        words = common | {"seed": 3, "shards": where, "latents": to / "latents", "encoder": to / "encoder"}
        finetune = tiny.params["finetune"]
        run_stage("finetune", finetune, **words, method="un2clip-held", checkpoints=str(to / "state"))
        run_stage(
            "diffusion_loss", tiny.params["diffusion_loss"] | {"images": 4, "bins": 1}, **words, scores=to / "scores"
        )
    made, other = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("here", "there")
    )
    assert json.loads(made["encoder/lineage.json"])["parents"]["shards"] == digest(tiny.shards)
    assert made == other and {"scores/tuned.json", "latents/latents.json"} < made.keys()
