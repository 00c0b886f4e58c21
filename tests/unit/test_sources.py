"""Where weights and data come from, against a hub on this machine."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.hub import COMMIT, Hub, point, served
from un2clip.__main__ import main
from un2clip.config import merge, read_params
from un2clip.errors import UserError
from un2clip.models.registry import obtain_model
from un2clip.sources.hub import Source, obtain, pin, read_tensors

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "org/name/unet/model.safetensors": WEIGHTS,
    "org/name/config.json": b"{}",
    "org/name/run.py": b"import os",
    "org/name/unet/model.bin": b"the same as a torch file",
    "datasets/org/pairs/Questions.csv": b"id\n1\n",
}
PINNED = {
    "unet/model.safetensors": hashlib.sha256(WEIGHTS).hexdigest(),
    "config.json": hashlib.sha256(b"{}").hexdigest(),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = Hub(dict(FILES))
    with served(made, monkeypatch, str(tmp_path / "home")):
        yield made


def source(location="org/name", revision=COMMIT, sha256=PINNED) -> Source:
    return Source(location=location, revision=revision, sha256=dict(sha256))


def test_a_pinned_hub_id_becomes_a_folder_of_exactly_the_pinned_files(hub) -> None:
    """The bytes are the hub's; a second call asks nothing; other files of the repository are never fetched."""
    folder = obtain(source(), files=["unet/*.safetensors", "config.json"], name="x")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"unet/model.safetensors": WEIGHTS, "config.json": b"{}"}
    asked = len(hub.requests)
    assert obtain(source(), name="x") == folder and len(hub.requests) == asked
    assert not any("run.py" in path for _, path, _ in hub.requests)


def test_what_pin_prints_is_what_obtain_takes(hub) -> None:
    """`pin` names the commit and the hashes of everything that may be opened, and of nothing else."""
    pinned = pin("org/name", "main", "model", [])
    assert (pinned.revision, pinned.sha256) == (COMMIT, PINNED)
    assert not any("model.safetensors" in path for _, path, _ in hub.requests), "large files are not fetched"
    assert pin("org/pairs", "main", "dataset", ["*.csv"]).sha256.keys() == {"Questions.csv"}


def test_pin_prints_an_overlay(hub, capsys, monkeypatch) -> None:
    """`un2clip pin org/name` gives YAML that params.yaml takes."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["pin", "org/name", "--files", "*.safetensors", "*.bin"]) == 0
    overlay = yaml.safe_load(capsys.readouterr().out)
    sha256 = {"unet/model.safetensors": PINNED["unet/model.safetensors"]}
    assert overlay == {"backbones": {"encoder": {"revision": COMMIT, "sha256": sha256}}}
    merge(read_params(Path("params.yaml")), overlay)


def test_a_dataset_is_fetched_as_one(hub) -> None:
    """`kind="dataset"` asks the hub's data sets and opens their kinds of files."""
    digest = hashlib.sha256(b"id\n1\n").hexdigest()
    folder = obtain(source("org/pairs", sha256={"Questions.csv": digest}), kind="dataset", name="x")
    assert (folder / "Questions.csv").read_bytes() == b"id\n1\n"
    with pytest.raises(UserError, match="Questions.csv is not opened here; of a model only .safetensors"):
        obtain(source("org/pairs", sha256={"Questions.csv": digest}), name="x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (source(revision=""), r"needs revision = the 40 digits of a commit, got ''; `un2clip pin org/name`"),
        (source(revision="main"), "got 'main'"),
        (source(sha256={}), r"x.sha256 pins no file unet/\* of org/name; `un2clip pin org/name` prints"),
        (source(sha256={"run.py": "0" * 64, "unet/a.json": "0" * 64}), "run.py is not opened here"),
    ],
)
def test_nothing_is_asked_of_the_hub_before_it_is_pinned(hub, given: Source, message: str) -> None:
    """A missing commit or hash, or a file that is never opened, stops before the first request."""
    with pytest.raises(UserError, match=message):
        obtain(given, files=["unet/*"], name="x")
    assert hub.requests == []


def test_a_wrong_hash_stops_with_file_wanted_and_found(hub) -> None:
    """The sentence has all three, and no folder is left to be opened."""
    wrong = "1" * 64
    with pytest.raises(
        UserError, match=f"config.json is not what was pinned.*wanted SHA-256 {wrong}, found {PINNED['config.json']}"
    ):  # noqa: E501
        obtain(source(sha256={"config.json": wrong}), name="x")


def test_a_file_that_the_hub_does_not_have_is_named(hub) -> None:
    """An absent file is one sentence with the repository and the commit."""
    with pytest.raises(UserError, match=f"cannot get gone.json of org/name at {COMMIT[:12]}"):
        obtain(source(sha256={"gone.json": "0" * 64}), name="x")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, monkeypatch) -> None:
    """The library asks for the rest, and the hash is right."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut = "model.safetensors"
    folder = obtain(source(), name="x")
    assert (folder / "unet/model.safetensors").read_bytes() == WEIGHTS
    assert [wanted for _, path, wanted in hub.requests if wanted] == [f"bytes={len(WEIGHTS) // 2}-"]


def test_a_hub_out_of_reach_is_one_line_without_the_token(monkeypatch, tmp_path) -> None:
    """A refused connection names the file and the hub, and keeps HF_TOKEN to itself."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries five times
    point(monkeypatch, "http://me:secret@127.0.0.1:9", str(tmp_path))
    message = r"cannot get .* from http://\*\*\*@127.0.0.1:9: .*; or name a local copy"
    with pytest.raises(UserError, match=message) as caught:
        obtain(source(), name="x")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_local_sources(tmp_path) -> None:
    """A file, a folder: verified where a hash is given, refused where absent or not of a kind that is opened."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.pkl").write_bytes(b"")
    local = source(str(tmp_path), "")
    assert obtain(local, files=["unet/*"], name="x") == tmp_path
    lone = source(str(tmp_path / "config.json"), "", {"config.json": PINNED["config.json"]})
    assert obtain(lone, name="x") == tmp_path / "config.json"
    for given, files, message in (
        (local, ["vae/*"], r"has no file vae/\*"),
        (local, ["*.pkl"], "model.pkl is not opened here"),
        (source(str(tmp_path / "model.pkl"), "", {}), [], "model.pkl is not opened here"),
        (source(str(tmp_path), "", {"config.json": "0" * 64}), [], "config.json is not what was pinned"),
        (source(str(tmp_path / "config.json"), ""), ["*"], None),
        (source(str(tmp_path / "absent"), "", {}), [], "there is no file or folder"),
    ):
        if message is None:
            assert obtain(given, files=files, name="x").name == "config.json"
            continue
        with pytest.raises(UserError, match=message):
            obtain(given, files=files, name="x")


def test_a_model_is_also_looked_for_in_the_registry(tmp_path) -> None:
    """A location that begins with models: needs a version or an alias; any other goes to the hub and the disk."""
    with pytest.raises(UserError, match="must be models:/name/3 or models:/name@alias"):
        obtain_model(source("models:/un2clip", "", {}), name="x")
    with pytest.raises(UserError, match="there is no file or folder"):
        obtain_model(source(str(tmp_path / "absent"), "", {}), name="x")


@pytest.mark.parametrize("path", ["../evil.json", "/etc/x.json", "a/../../x.json"])
def test_a_pinned_path_stays_inside(path: str) -> None:
    """A path out of the source is refused before anything is read."""
    with pytest.raises(ValueError, match="paths inside the source"):
        source(sha256={path: "0" * 64})


def test_state_dicts_are_read_without_running_anything(tmp_path: Path) -> None:
    """safetensors and torch give the tensors; an object, TorchScript and a truncated file are refused."""
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    for name in ("a.safetensors", "a.ckpt"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], tensors["a"])
    torch.save({"a": Path("x")}, tmp_path / "object.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "jit.pt"))
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    for name, message in (
        ("object.pt", "beside tensors it holds a pathlib.*, and what may run code is not opened; save the weights"),
        ("jit.pt", "TorchScript and other pickles are not opened"),
        ("list.pt", "must hold a mapping of names to tensors, or one as state_dict, .* it holds a list"),
        ("cut.safetensors", "cannot read .*cut.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / name)
