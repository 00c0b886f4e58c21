"""`ingest` reads tars of a bucket, of a real S3 server on this machine; what is wrong there is one sentence."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.s3 import BUCKET, CREDENTIALS
from tests.unit.test_disks import small  # noqa: F401  # a fixture
from tests.unit.test_ingest import DEFAULTS, files_below, good, run, write_tar
from tests.unit.test_ingest_resumes import fill
from un2clip.config import build
from un2clip.datasets import ingesting, remote
from un2clip.errors import DiskRefused, UserError
from un2clip.stages.ingest import Ingest, ingest


def from_s3(folder: Path, source: str, processes: int = 1) -> None:
    section = build(Ingest, DEFAULTS | {"heldout_fraction": 0.3, "processes": processes}, "ingest")
    ingest(section, images=Path(f"s3://{source}"), shards=folder / "shards")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_bytes_are_those_of_a_folder(store, tmp_path, processes: int, capsys) -> None:
    fill(tmp_path, 3, 6)
    run(tmp_path, heldout_fraction=0.3)
    expected = files_below(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    store.put(f"{tmp_path}/images/", f"{BUCKET}/same/", recursive=True)
    store.pipe(f"{BUCKET}/same/list.csv", b"x")
    capsys.readouterr()
    from_s3(tmp_path / "out", f"{BUCKET}/same", processes)
    assert files_below(tmp_path / "out") == expected
    assert "not read: list.csv (not a .tar)" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shards"], "no copy stays"


def test_splits_are_folders_of_the_bucket(store, tmp_path) -> None:
    for split, first in (("train", 0), ("heldout", 5)):
        write_tar(tmp_path / "images" / split / "0.tar", *(good(f"{n}", n) for n in range(first, first + 4)))
    store.put(f"{tmp_path}/images/", f"{BUCKET}/split/", recursive=True)
    from_s3(tmp_path / "out", f"{BUCKET}/split")
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.tar")} == {"train", "heldout"}


def test_a_tar_that_changes_while_it_is_read_is_refused(store, tmp_path, monkeypatch) -> None:
    """Named; the other tar is not fetched again; once nothing writes it any more the same command goes on."""
    fill(tmp_path, 2, 6)
    store.put(f"{tmp_path}/images/", f"{BUCKET}/growing/", recursive=True)
    write_tar(tmp_path / "other.tar", good("other"), good("more"))
    check, calls, fetched, fetch = ingesting.check, [], [], remote.fetch

    def growing(group, params):
        calls.append(group.key)
        if len(calls) == 9:
            store.put(str(tmp_path / "other.tar"), f"{BUCKET}/growing/1.tar")
        return check(group, params)

    monkeypatch.setattr(ingesting, "check", growing)
    monkeypatch.setattr(remote, "fetch", lambda tar, to: (fetched.append(tar.name), fetch(tar, to)))
    said = rf"^s3://{BUCKET}/growing/1.tar changed while it was read; let what writes it end, then the same command"
    with pytest.raises(UserError, match=said):
        from_s3(tmp_path / "out", f"{BUCKET}/growing")
    calls.clear()
    from_s3(tmp_path / "out", f"{BUCKET}/growing")
    assert calls == ["other", "more"] and fetched == ["0.tar", "1.tar", "1.tar"]


@pytest.mark.parametrize(
    ("variables", "source", "said"),
    [
        ({}, f"{BUCKET}/no", rf"^s3://{BUCKET}/no has no \*.tar of its own; give a folder of tars"),
        ({}, "nowhere/a", r"^s3://nowhere/a is not there \(The specified bucket does not exist\); name another"),
        (
            {"AWS_SECRET_ACCESS_KEY": "x"},
            BUCKET,
            rf"^s3://{BUCKET}: the store refuses it \(.*\); look at AWS_A",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "x"},
            BUCKET,
            rf"^s3://{BUCKET}: the store refuses it \(.*\); look at AWS_A",
        ),
        (
            dict.fromkeys(CREDENTIALS),
            BUCKET,
            rf"^s3://{BUCKET}: no keys are given; set AWS_ACCESS_KEY_ID and",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            BUCKET,
            r"^s3://\S+: the store does not answer .* AWS_ENDPOINT_URL",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(store, tmp_path, monkeypatch, variables, source: str, said: str) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # where no keys are given, Amazon's network is asked
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, os.devnull)
    remote._store.cache_clear()
    with pytest.raises(UserError, match=said) as refused:
        from_s3(tmp_path, source)
    assert "\n" not in str(refused.value)


def test_without_s3fs_the_extra_is_named(monkeypatch, tmp_path) -> None:
    remote._store.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"^an s3:// address needs s3fs, .*: pip install 'un2clip\[s3\]'$"):
        from_s3(tmp_path, BUCKET)


def test_a_copy_that_fills_the_disk_is_taken_away(store, tmp_path, small) -> None:  # noqa: F811
    write_tar(tmp_path / "large.tar", [("a.bin", bytes(2 * 2**20))])
    store.put(str(tmp_path / "large.tar"), f"{BUCKET}/large/large.tar")
    with pytest.raises(DiskRefused, match=r"^\S*small\S*: no space is left .*; make room, then the same command"):
        from_s3(small, f"{BUCKET}/large")
    assert not list(small.rglob("*.tar"))


def test_keys_that_go_wrong_later_lose_nothing(store, tmp_path, monkeypatch) -> None:
    """The first tar is checked; then the store refuses; with the keys the same command checks the second alone."""
    fill(tmp_path, 2, 6)
    store.put(f"{tmp_path}/images/", f"{BUCKET}/keys/", recursive=True)
    fetch, checked = remote.fetch, []

    def refused(tar, to):
        if tar.name == "1.tar":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
            remote._store.cache_clear()
        fetch(tar, to)

    monkeypatch.setattr(remote, "fetch", refused)
    with pytest.raises(UserError, match=rf"^s3://{BUCKET}/keys/1.tar: the store refuses it"):
        from_s3(tmp_path / "out", f"{BUCKET}/keys")
    monkeypatch.setattr(remote, "fetch", fetch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    remote._store.cache_clear()
    check = ingesting.check
    monkeypatch.setattr(ingesting, "check", lambda group, params: (checked.append(group.key), check(group, params))[1])
    from_s3(tmp_path / "out", f"{BUCKET}/keys")
    assert len(checked) == 7
