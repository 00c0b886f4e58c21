"""What Kubeflow shows of an artifact: each number against the files, counted in another way."""

import base64
import json
import re
import tarfile
from pathlib import Path

import pytest
from google.protobuf import json_format, struct_pb2
from safetensors.torch import load_file

from un2clip.cluster.artifacts import DESCRIPTIONS, PAGES, describe, pictures, scores_of
from un2clip.errors import UserError
from un2clip.evidence.scores import Item, Scores
from un2clip.hashes import tensors_sha256


def members(folder: Path) -> int:
    """Captions in all tars of a folder."""
    return sum(name.endswith(".txt") for tar in folder.glob("*.tar") for name in tarfile.open(tar).getnames())


def test_shards(tiny) -> None:
    """Samples of each split are the captions in its tars, and what was read is what was kept and rejected."""
    said = describe("shards", str(tiny.shards))
    assert said["samples"] == {split: members(tiny.shards / split) for split in ("train", "heldout")}
    assert said["read"] == sum(said["samples"].values()) + sum(said["rejected"].values()) == 240
    assert len(said["sha256"]) == 64


def test_weights_and_latents(tiny) -> None:
    """The CLIP's hash is that of its weights; the cache has as many files as it says."""
    weights = load_file(tiny.backbones / "clip/open_clip_model.safetensors")
    assert describe("backbones", str(tiny.backbones)) == {"clip_sha256": tensors_sha256(weights)}
    said = describe("latents", str(tiny.latents))
    assert said["cached"] and said["files"] == len(list(tiny.latents.rglob("*.safetensors"))) > 1


def test_encoder_and_decision(tmp_path: Path) -> None:
    """Of a lineage and a decision, what a person asks first; no version is an empty text, for a null cannot travel."""
    lineage = {
        "method": "un2clip", "seed": 3, "steps_done": 9, "complete": False, "encoder_sha256": "e", "text_sha256": "t",
        "parents": {"clip": "c"}, "params": {"batch_size": 4}, "corrupt": 0, "of another version": 0,
    }  # fmt: skip
    (tmp_path / "lineage.json").write_text(json.dumps(lineage))
    assert describe("encoder", str(tmp_path)) == {
        k: v for k, v in lineage.items() if k not in ("params", "corrupt", "of another version")
    }
    (tmp_path / "decision.json").write_text(json.dumps({"passed": False, "rules": []}))
    (tmp_path / "registry.json").write_text(json.dumps({"outcome": "kept", "version": None}))
    assert describe("decision", str(tmp_path)) == {"passed": False, "outcome": "kept", "version": ""}
    (tmp_path / "decision.json").write_text(json.dumps({"passed": True, "rules": []}))
    with pytest.raises(UserError, match="passed does not follow from its rules and objections"):
        describe("decision", str(tmp_path))


def test_scores(tmp_path: Path) -> None:
    """Three of four pairs are 75 %, in the metadata and in the table of metrics; a PNG beside them changes nothing."""
    for role, right in (("reference", 1), ("tuned", 3)):
        items = tuple(Item(id=str(i), type="a", value=float(i < right)) for i in range(4))
        method = "un2clip" if role == "tuned" else role
        scores = Scores(benchmark="pairs", role=role, method=method, unit="%", protocol="p", data_sha256="d",
                        encoder_sha256=role, items=items)  # fmt: skip
        scores.save(tmp_path / f"{role}.json")
    (tmp_path / "pairs.png").touch()
    said = describe("scores", str(tmp_path))
    assert said["benchmark"] == "pairs"
    assert said["tuned"] == {"unit": "%", "n": 4, "data_sha256": "d", "encoder_sha256": "tuned", "score": 75.0}
    assert scores_of(str(tmp_path)) == {"pairs reference": 25.0, "pairs tuned": 75.0}


def test_pictures(tmp_path: Path) -> None:
    """The page holds every PNG's bytes, and asks nobody for anything."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG" + name.encode())
    page = pictures(str(tmp_path))
    found = [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert found == [b"\x89PNGa", b"\x89PNGb"]
    assert "http" not in page


@pytest.mark.parametrize("name", ["shards", "backbones", "latents"])
def test_metadata_can_travel(tiny, name: str) -> None:
    """Kubeflow keeps metadata as a Struct: keys are texts, nothing is of a type that it does not know."""
    said = describe(name, str(getattr(tiny, name)))
    kept = json_format.MessageToDict(json_format.ParseDict(said, struct_pb2.Struct()))
    assert kept == said and None not in said.values()


def test_every_name_has_an_artifact() -> None:
    """Each description belongs to an output of a component, under the same name."""
    root = Path(__file__).parents[2]
    components = "".join(path.read_text() for path in (root / "components").glob("*/component.py"))
    told = set(re.findall(r'(?:run\("\w+", given, |describe\()"(\w+)"', components))
    outputs = set(re.findall(r"(\w+): dsl\.Output\[dsl\.(?:Dataset|Model|Artifact)\]", components))
    assert told == DESCRIPTIONS.keys() | PAGES.keys() and told < outputs
