"""Embeddings of texts are made once for a text tower: for both roles, for all runs, again where damaged."""

import dataclasses

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from un2clip.config import build
from un2clip.evaluation.dense.features import text_features
from un2clip.evaluation.measuring import Evaluate
from un2clip.models.clip import load_clip, save_clip
from un2clip.stages.evaluate import evaluate

NAMES = (("cat", "kitten"), ("dog",))


@pytest.fixture
def source(tiny):
    return tiny.backbones / "clip"


@pytest.fixture
def embedded(monkeypatch):
    """How many texts open_clip was asked to embed, counted around its own method."""
    counts = []
    own = open_clip.CLIP.encode_text

    def counting(model, ids, *arguments, **named):
        counts.append(len(ids))
        return own(model, ids, *arguments, **named)

    monkeypatch.setattr(open_clip.CLIP, "encode_text", counting)
    return counts


def test_a_tower_is_asked_once(source, tmp_path, embedded):
    """In memory for another image tower, on disk for another run; bit for bit what is made without either."""
    plain = load_clip(source)
    wanted, texts = text_features(plain, NAMES), plain.embed_texts(["a cat", "a dog"])
    clip = plain.keeping_texts(source, tmp_path / "texts")
    other = load_clip(source)
    with torch.no_grad():
        other.model.visual.proj.mul_(2)
    other = other.keeping_texts(source, tmp_path / "texts", clip)
    embedded.clear()
    for each in (clip, other, clip):
        assert torch.equal(text_features(each, NAMES), wanted)
        assert torch.equal(each.embed_texts(["a cat", "a dog"]), texts)
    assert embedded == [3 * 80, 2]
    later = load_clip(source).keeping_texts(source, tmp_path / "texts")
    assert torch.equal(text_features(later, NAMES), wanted) and embedded == [3 * 80, 2]
    assert len(list((tmp_path / "texts").iterdir())) == 1, "no partial file, and plain texts are not kept on disk"


def test_what_decides_is_in_the_key(source, tmp_path, embedded):
    """Other names, another tower, another tokenizer beside it: each is embedded for itself."""
    clip = load_clip(source).keeping_texts(source, tmp_path / "texts")
    text_features(clip, NAMES)
    assert text_features(clip, (("dog",),)).shape == (clip.embed_dim, 1)
    other = load_clip(source)
    with torch.no_grad():
        other.model.text_projection.copy_(other.model.text_projection.flip(1))
    other = other.keeping_texts(source, tmp_path / "texts", clip)
    torch.testing.assert_close(text_features(other, NAMES), text_features(clip, NAMES).flip(0))
    save_clip(clip, tmp_path / "clip")
    (tmp_path / "clip/vocab.txt").write_text("[UNK]\n")
    again = dataclasses.replace(clip, texts=None).keeping_texts(tmp_path / "clip", tmp_path / "texts", clip)
    text_features(again, NAMES)
    assert embedded == [240, 80, 240, 240] and len(list((tmp_path / "texts").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "empty", "foreign"])
def test_a_damaged_file_is_said_and_made_again(source, tmp_path, embedded, capsys, damage):
    """Cut off, a bit turned, another key's content, empty, or another's: the embeddings are right all the same."""
    folder = tmp_path / "texts"
    wanted = text_features(load_clip(source).keeping_texts(source, folder), NAMES)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    if damage == "swapped":
        text_features(load_clip(source).keeping_texts(source, folder), (("dog",),))
        (other,) = set(folder.iterdir()) - {path}
        other.replace(path)
    elif damage == "foreign":
        save_file({"embeddings": load_file(path)["embeddings"] + 1}, path)
    else:
        damaged = {"cut": whole[:-9], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage]
        path.write_bytes(damaged)
    embedded.clear()
    assert torch.equal(text_features(load_clip(source).keeping_texts(source, folder), NAMES), wanted)
    assert embedded == [240] and f"{path} is damaged (" in capsys.readouterr().err
    assert path.read_bytes() == whole
    text_features(load_clip(source).keeping_texts(source, folder), NAMES)
    assert embedded == [240] and not capsys.readouterr().err


def test_a_disk_that_cannot_be_written_costs_time_alone(source, tmp_path, capsys):
    """A file stands where the folder should be: a sentence, and the embeddings."""
    (tmp_path / "texts").write_text("")
    clip = load_clip(source)
    found = text_features(clip.keeping_texts(source, tmp_path / "texts"), NAMES)
    assert torch.equal(found, text_features(clip, NAMES))
    assert "cannot keep embeddings of texts in" in capsys.readouterr().err


def test_scores_are_the_same_with_and_without(tiny, tmp_path, embedded):
    """The stage's files, byte for byte; the second run embeds no class, and both roles share what they read."""
    params = build(Evaluate, tiny.params["evaluate"], "evaluate")
    counts = []
    for name, checkpoints in (("without", ""), ("first", str(tmp_path / "kept")), ("second", str(tmp_path / "kept"))):
        embedded.clear()
        evaluate(
            params, benchmark="zeroshot", device="cpu", checkpoints=checkpoints, benchmarks=tiny.benchmarks,
            backbones=tiny.backbones, encoder=tiny.backbones / "clip", scores=tmp_path / name,
        )  # fmt: skip
        counts.append(sum(embedded))
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("without", "first")]
    assert made[0] == made[1] == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert counts[0] == counts[1] > 0 == counts[2]
