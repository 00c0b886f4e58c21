"""A registered encoder goes out, as a folder and to a hub on this machine; every link of its chain is broken once."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import open_clip
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPVisionModel

from tests.candidates import Candidate, new_weights
from tests.hub import point
from tests.toy_clips import write_folder
from un2clip.__main__ import main
from un2clip.datasets.shards import digest
from un2clip.models.publishing import _add_hugging_face
from un2clip.models.registry import EVIDENCE, FILES, Registry
from un2clip.tracking import store

WEIGHTS = FILES[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny) -> Iterator[Candidate]:
    """The champion of a store, trained by its lineage on the tiny world's shards."""
    folder = tmp_path_factory.mktemp("publish")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UN2CLIP_TRACKING", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        candidate = Candidate(folder, new_weights(), "a", detail=160)
        candidate.trained_on(digest(tiny.shards))
        candidate.promote(Registry("un2clip"))
        yield candidate


@pytest.fixture(scope="module")
def published(made, tmp_path_factory, tiny) -> Path:
    """What `un2clip publish` writes without an extra; it is copied, never changed."""
    to = tmp_path_factory.mktemp("published") / "folder"
    words = ["publish", f"--to={to}", "--model=un2clip", f"--shards={tiny.shards}", "--licence=mit"]
    assert main([*words, "--dataset=mmvp_vlm=org/set:pairs@" + "1" * 40]) == 0
    return to


@pytest.fixture
def copy(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def relist(folder: Path, **changed: object) -> None:
    """Write the record anew, as one would who wants a changed file to pass."""
    from un2clip.models.publishing.layout import CUSTODY, list_files

    content = json.loads((folder / CUSTODY).read_text()) | {"files": list_files(folder)} | changed
    (folder / CUSTODY).write_text(json.dumps(content))


def test_the_folder_loads_in_open_clip_and_transformers(made, published) -> None:
    """By the card's own lines, with equal embeddings; LLaVA's class finds its tower there too."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{published}")
    wanted, _, _ = open_clip.create_model_and_transforms(f"local-dir:{made.encoder}")
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = AutoModel.from_pretrained(published).eval()
    with torch.no_grad():
        expected = wanted.eval().encode_image(pixel_values)
        assert torch.equal(model.eval().encode_image(pixel_values), expected)
        found = theirs.get_image_features(pixel_values=pixel_values).pooler_output
    assert torch.allclose(found, expected, atol=1e-5)
    assert AutoProcessor.from_pretrained(published)(text=["a"])["input_ids"]
    assert CLIPVisionModel.from_pretrained(published).config.hidden_size == 32


def test_files_that_would_replace_each_other_lie_apart(tmp_path) -> None:
    """SigLIP has a tokenizer.json for each library: transformers' own lie in a subfolder, and load from there."""
    original = write_folder(tmp_path / "folder", "siglip").eval()
    kept = (tmp_path / "folder/tokenizer.json").read_bytes()
    assert _add_hugging_face(tmp_path / "folder", tmp_path / "scratch") == ("transformers", "")
    assert (tmp_path / "folder/tokenizer.json").read_bytes() == kept
    model = AutoModel.from_pretrained(tmp_path / "folder", subfolder="transformers").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "folder", subfolder="transformers")
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixel_values).pooler_output
        assert torch.allclose(found, original.encode_image(pixel_values), atol=1e-5)
    assert processor(text=["a red circle"])["input_ids"]


def test_the_card_says_what_was_measured_and_what_was_not(made, published) -> None:
    """Head as the hub reads it; scores before and after with n and interval, gate, hashes, cost, limits."""
    page = ModelCard.load(published / "README.md")
    assert page.data.license == "mit" and page.data.library_name == "open_clip"
    text = page.text
    # 100 of 400 before, 160 after: 60 samples rose, and the gate's own sentence says so
    assert "| mmvp_vlm (%) | 400 samples | 25.0 | 40.0 | +15.0 |" in text
    assert "**Passed**, judged against the reference encoder." in text and "mmvp_vlm gained 15 points over 400" in text
    for said in (made.sha256[:12], "d" * 64, digest_of(made), "seed 3, 1 steps", "how long it took is not known"):
        assert said in text, said
    assert "local-dir:FOLDER" in text and "AutoModel.from_pretrained" in text and "un2clip embed" in text
    assert "It is not signed" in text and "licence not stated" in text


def digest_of(made: Candidate) -> str:
    return str(made.lineage["parents"]["shards"])


def test_results_in_the_hubs_format_are_those_that_have_a_name_there(published, capsys) -> None:
    """By the hub client's own reader; zeroshot, whose data nobody named, has no file."""
    assert [path.name for path in (published / ".eval_results").iterdir()] == ["mmvp_vlm.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((published / ".eval_results/mmvp_vlm.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("org/set", "pairs", "1" * 40)
    assert entry.value == 40.0 and "400 samples; before 25.0, change +15.0" in str(entry.notes)


def test_croissant_reads_the_samples_back(published, tiny, tmp_path, monkeypatch) -> None:
    """mlcroissant itself, beside the shards: every image and caption with its key, and a changed shard is refused."""
    mlc = pytest.importorskip("mlcroissant", reason="the extra `publish` is not installed")
    from etils import epath

    from un2clip.datasets.shards import samples

    # it keeps what it unpacked by the tar's path, whatever is in the tar
    monkeypatch.setattr("mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH", epath.Path(tmp_path / "x"))
    shards = Path(shutil.copytree(tiny.shards, tmp_path / "shards"))
    shutil.copy(published / "croissant.json", shards)
    data = mlc.Dataset(str(shards / "croissant.json"))
    wanted = {each.key: each for each in samples(shards / "train")}
    images = {row["train-images/key"].decode(): row["train-images/image"] for row in data.records("train-images")}
    texts = data.records("train-captions")
    captions = {row["train-captions/key"].decode(): row["train-captions/caption"] for row in texts}
    assert images.keys() == captions.keys() == wanted.keys() and len(wanted) > 10
    for key, sample in wanted.items():
        assert captions[key].decode() == sample.caption
        assert images[key].convert("RGB").tobytes() == sample.image.tobytes()


def test_every_link_is_walked(published, capsys) -> None:
    """All of them, in order; the signature is not there, and that is said."""
    assert main(["verify", str(published)]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+) +(holds|not checked)", out, re.M)[:5] == [
        ("signature", "not checked"),
        *((name, "holds") for name in ("files", "weights", "lineage", "scores")),
    ]  # fmt: skip
    assert "not checked: signature" in out


def change_a_file(folder: Path) -> None:
    (folder / "README.md").write_text("better")


def add_a_file(folder: Path) -> None:
    (folder / "more.py").write_text("import os")


def lose_a_file(folder: Path) -> None:
    (folder / "evidence/report.json").unlink()


def change_the_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"visual.proj": tensors["visual.proj"] + 1e-3}, folder / WEIGHTS)
    relist(folder)


def change_the_text_tower(folder: Path) -> None:
    """With all that says which encoder it is, and not which text tower it had."""
    from un2clip.models.clip import encoder_sha256

    old, tensors = encoder_sha256(folder), load_file(folder / WEIGHTS)
    save_file(tensors | {"positional_embedding": tensors["positional_embedding"] + 1e-3}, folder / WEIGHTS)
    for path in [folder / "lineage.json", *folder.glob("evidence/**/*.json")]:
        path.write_text(path.read_text().replace(old, encoder_sha256(folder)))
    relist(folder, encoder_sha256=encoder_sha256(folder))


def take_anothers_lineage(folder: Path) -> None:
    content = json.loads((folder / "lineage.json").read_text()) | {"encoder_sha256": "0" * 64}
    (folder / "lineage.json").write_text(json.dumps(content))
    relist(folder)


def improve_the_report(folder: Path) -> None:
    path = folder / "evidence/report.json"
    content = json.loads(path.read_text())
    content["benchmarks"][0]["whole"]["tuned"] += 1.0
    path.write_text(json.dumps(content))
    relist(folder)


def improve_an_outcome(folder: Path) -> None:
    path = folder / "evidence/scores/mmvp_vlm/tuned.json"
    content = json.loads(path.read_text())
    content["items"][399]["value"] = 1.0
    path.write_text(json.dumps(content))
    relist(folder)


def take_anothers_decision(folder: Path) -> None:
    path = folder / "evidence/decision.json"
    content = json.loads(path.read_text())
    content["challenger"]["encoder_sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    relist(folder)


def name_another_commit(folder: Path) -> None:
    relist(folder, source_commit="0" * 40)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change_a_file, "files does not hold: README.md is another one"),
        (add_a_file, "files does not hold: more.py is not listed"),
        (lose_a_file, "files does not hold: evidence/report.json is missing"),
        (change_the_weights, "weights does not hold: the weights hash to"),
        (take_anothers_lineage, "lineage does not hold: lineage.json is of encoder 000000000000"),
        (change_the_text_tower, "lineage does not hold: the text tower is not the one"),
        (improve_the_report, "scores does not hold: the report's mmvp_vlm does not follow"),
        (improve_an_outcome, "scores does not hold: .*its summary disagrees with its items"),
        (take_anothers_decision, "scores does not hold: decision.json is about encoder 000000000000"),
        (name_another_commit, "source does not hold: commit 000000000000 is not in this checkout"),
    ],
)
def test_the_first_broken_link_is_named(copy, capsys, monkeypatch, tmp_path, spoil, said) -> None:
    """Each link, broken by itself; status 2 and one sentence."""
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    monkeypatch.chdir(checkout)
    spoil(copy)
    assert main(["verify", str(copy)]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_signature_is_by_whom_it_must_be(made, copy, published, tiny, tmp_path, capsys) -> None:
    """Signed with a key, the folder verifies by that key, under another name too, and by no other; nor if changed."""
    pytest.importorskip("model_signing.signing", reason="the extra `publish` is not installed")
    keys = [new_key(tmp_path / name) for name in ("mine", "another")]
    to = tmp_path / "signed"
    assert main(["publish", f"--to={to}", "--model=un2clip", f"--sign-key={keys[0][0]}"]) == 0
    assert "OpenSSF signature over all files" in (to / "README.md").read_text()
    to = to.rename(tmp_path / "renamed")
    (to / ".gitattributes").write_text("of the hub")
    (to / ".cache/huggingface").mkdir(parents=True)
    (to / ".cache/huggingface/x").write_text("of its client")
    capsys.readouterr()
    assert main(["verify", str(to), f"--key={keys[0][1]}"]) == 0
    assert "signature  holds" in capsys.readouterr().out
    assert main(["verify", str(to), f"--key={keys[1][1]}"]) == 2
    assert "signature does not hold" in capsys.readouterr().err
    change_the_weights(to)
    assert main(["verify", str(to), f"--key={keys[0][1]}"]) == 2
    assert "signature does not hold: custody.json is not the file that was signed" in capsys.readouterr().err
    (to / "model.sig").unlink()
    assert main(["verify", str(to), f"--key={keys[0][1]}"]) == 2
    assert "signature does not hold: there is no model.sig" in capsys.readouterr().err


def new_key(stem: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = stem.with_suffix(".pem"), stem.with_suffix(".pub")
    none = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_registered_version_is_walked_likewise(made, capsys) -> None:
    """By its alias; then with other scores in the run that it names."""
    assert main(["verify", "champion", "--model=un2clip"]) == 0
    assert "what was registered as version 1 of un2clip" in capsys.readouterr().out
    registry = Registry("un2clip")
    run = registry.version("1").tags[EVIDENCE]
    other = json.loads((made.encoder / "lineage.json").read_text()) | {"encoder_sha256": "0" * 64}
    kept = json.dumps(json.loads((made.encoder / "lineage.json").read_text()))
    registry.client.log_text(run, json.dumps(other), "evidence/lineage.json")
    assert main(["verify", "champion", "--model=un2clip"]) == 2
    assert "lineage does not hold" in capsys.readouterr().err
    registry.client.log_text(run, kept, "evidence/lineage.json")


def test_where_it_came_from_is_looked_for_in_the_checkout(copy, tmp_path, monkeypatch, capsys) -> None:
    """A commit that is there holds."""
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    relist(copy, source_commit=commit)
    assert main(["verify", str(copy)]) == 0
    assert f"commit {commit[:12]} is in this checkout" in capsys.readouterr().out


@contextmanager
def hub_that_takes(received: dict[str, bytes], requests: list[tuple[str, object]]) -> Iterator[str]:
    """The hub's answers to a commit, as far as its client asks for them: all files within the commit itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            requests.append((self.path, self.headers.get("Authorization")))
            address = f"http://{self.headers['Host']}"
            answer: object = {}
            if self.path.startswith("/api/repos/create"):
                requests.append(("private", lines[0].get("private", lines[0].get("visibility"))))
                answer = {"url": f"{address}/org/name"}
            elif "/preupload/" in self.path:
                how = {"uploadMode": "regular", "shouldIgnore": False}
                answer = {"files": [{"path": each["path"]} | how for each in lines[0]["files"]]}
            elif "/commit/" in self.path:
                for line in lines:
                    if line["key"] == "file":
                        received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"success": True, "commitOid": "1" * 40, "commitUrl": f"{address}/org/name/commit/{'1' * 40}"}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_pushing_sends_the_folder_that_was_looked_at(made, copy, monkeypatch, tmp_path, capsys) -> None:
    """Through the hub's own client, in one commit, private; then a folder that was changed since is refused."""
    received: dict[str, bytes] = {}
    requests: list[tuple[str, object]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_that_takes(received, requests) as address:
        point(monkeypatch, address, str(tmp_path / "home"))
        monkeypatch.setattr("un2clip.models.publishing.hub.HfApi", lambda: HfApi(endpoint=address))
        words = ["publish", f"--to={copy}", "--model=un2clip", "--push=org/name"]
        assert main(words) == 0
        assert f"pushed: {address}/org/name/commit/" in capsys.readouterr().out
        files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert received == files and ".eval_results/mmvp_vlm.yaml" in files
        assert ("private", True) in requests or ("private", "private") in requests
        assert [path for path, _ in requests if "/commit/" in path] == ["/api/models/org/name/commit/main"]
        change_a_file(copy)
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "is not version 1 as it was published" in error and "hf_secret" not in error
    monkeypatch.setattr("un2clip.models.publishing.hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    assert main(["publish", f"--to={tmp_path / 'new'}", "--model=un2clip", "--push=org/name"]) == 2
    assert "the hub did not take org/name" in capsys.readouterr().err


def test_mistakes_are_named(made, tmp_path, capsys) -> None:
    """A data set without scores, one that is no name; a folder in use; half of an identity."""
    to_x = ["publish", "--model=un2clip", f"--to={tmp_path / 'x'}"]
    for words, said in (
        ([*to_x, "--dataset=voc=a/b"], "--dataset names voc, which has"),
        ([*to_x, "--dataset=voc"], "--dataset must be BENCHMARK=ORG"),
        ([*to_x[:2], f"--to={made.encoder}"], "is in use"),
        (["verify", str(tmp_path), "--identity=me"], "by --identity and --issuer together"),
        (["verify", str(tmp_path)], "custody.json"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_store_knows_how_long_a_training_took(made) -> None:
    """Of the runs beside the promotion, the last finished one; here none trained."""
    registry = Registry("un2clip")
    run = registry.version("1").tags[EVIDENCE]
    assert store.duration_beside(registry.client, run, "finetune") is None
    assert store.duration_beside(registry.client, run, "promote") > 0.0
