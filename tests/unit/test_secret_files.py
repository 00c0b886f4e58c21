"""Secrets as files, laid out as Kubernetes mounts them, become variables of a task."""

import os
from pathlib import Path

import pytest

from un2clip.cluster.secret_files import SECRETS, read_secrets


def mount(folder: Path, **content: str) -> None:
    """A Secret as a kubelet lays it: each key a link to a file below ..data, which is a link to a dated folder."""
    (folder / "..2026_11_27").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026_11_27")
    for key, value in content.items():
        (folder / "..data" / key).write_text(value)
        (folder / key).symlink_to(Path("..data", key))


@pytest.fixture
def environment(monkeypatch) -> os._Environ:
    """Without any of the variables, whatever a test sets."""
    for key in (*(key for keys in SECRETS.values() for key in keys), "LD_PRELOAD"):
        monkeypatch.setenv(key, "")  # so that it is put back
        monkeypatch.delenv(key)
    return os.environ


def test_known_keys_become_variables(environment, tmp_path, capsys) -> None:
    """A key of another Secret, or of none, does not; a line end is no part of a value; nothing is printed."""
    mount(tmp_path / "mlflow_secret", MLFLOW_TRACKING_URI="http://m:5000\n", LD_PRELOAD="evil.so", HF_TOKEN="not here")
    mount(tmp_path / "s3_secret", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="it's $HOME\nof two lines")
    environment["MLFLOW_TRACKING_USERNAME"] = "stays"
    before = dict(environment)
    read_secrets(str(tmp_path))
    assert {key: value for key, value in environment.items() if before.get(key) != value} == {
        "MLFLOW_TRACKING_URI": "http://m:5000",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "it's $HOME\nof two lines",
    }
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_without_secrets_nothing_changes(environment, tmp_path) -> None:
    """Each Secret is optional: an optional volume of a Secret that does not exist is an empty folder, or none."""
    (tmp_path / "hub_secret").mkdir()
    before = dict(environment)
    read_secrets(str(tmp_path))
    read_secrets(str(tmp_path / "none"))
    assert dict(environment) == before
