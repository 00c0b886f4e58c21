"""Checkpoints as training scripts leave them, and Hugging Face's folders: read, or what they hold is said."""

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from transformers import CLIPConfig, CLIPModel

from tests.toy_clips import MODEL_CFG, PREPROCESS_CFG, TEXTS, model_of, write_folder
from tests.unit.test_encoders import encoder, published, same
from un2clip.errors import UserError
from un2clip.models.clip import load_clip
from un2clip.models.converting import convert_checkpoint
from un2clip.models.exporting import write_export

__all__ = ["published"]
State = dict[str, torch.Tensor]
Wrap = Callable[[State], Any]


def named(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


READ: dict[str, Wrap] = {
    "as it is": lambda state: state,
    "open_clip's own": lambda state: {"epoch": 1, "name": "x", "state_dict": named("module.")(state), "scaler": None},
    "compiled": named("_orig_mod."),
    "compiled, then DDP": named("module._orig_mod."),
    "DDP, then compiled": named("_orig_mod.module."),
    "parts compiled": lambda state: {
        name.replace("visual.", "visual._orig_mod."): each for name, each in state.items()
    },
    "model": lambda state: {"model": state, "epoch": 1, "optimizer": {"state": {}}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "DeepSpeed": lambda state: {"module": state, "global_steps": 3},
    "Lightning": lambda state: {"state_dict": named("model.")(state), "hyper_parameters": {"lr": 1e-3}},
    "Lightning, compiled": lambda state: {"state_dict": named("model._orig_mod.")(state)},
    "Lightning of another name": lambda state: {"state_dict": named("net.clip.")(state)},
    "twice": lambda state: {"model": {"state_dict": state}},
    "half precision": lambda state: {name: value.half() for name, value in state.items()},
    "its own mask": lambda state: state | {"attn_mask": torch.full((16, 16), -torch.inf).triu(1)},
}
REFUSED: dict[str, tuple[Wrap, str]] = {
    "int8": (
        lambda state: {name: each.to(torch.int8) if each.ndim == 2 else each for name, each in state.items()},
        r"is of int8, not of floating point; .* and \d+ more",
    ),
    "one of integers": (
        lambda state: state | {"ln_final.bias": torch.zeros(64, dtype=torch.int64)},
        "of int64, not of",
    ),
    "another mask": (lambda state: state | {"attn_mask": torch.zeros(16, 16)}, "attn_mask has no place"),
    "numpy beside": (
        lambda state: {"state_dict": state, "best": np.float64(3)},
        "holds a numpy.*scalar, and what may run",
    ),
    "no weights": (lambda state: {"epoch": 3, "optimizer": {"lr": 1}}, r"it holds epoch \(int\), optimizer \(dict\)"),
    "a list": (lambda state: list(state.values()), "it holds a list"),
    "another model": (
        lambda state: {"encoder.layer.0.weight": state["ln_final.bias"], "encoder.layer.0.bias": torch.zeros(1)},
        "none of its 2 names fits; it holds weight, bias, ...|none of its 2 names fits; it holds encoder.layer",
    ),
    "two models": (
        lambda state: named("student.")(state) | named("teacher.")(state),
        "holds no CLIP: none of its .* names fits; it holds student.positional_embedding",
    ),
    "nothing": (lambda state: {}, "holds no CLIP: none of its 0 names fits; it holds nothing"),
}


@functools.cache
def original() -> CLIP:
    """The one model of these tests; who changes it copies it."""
    return model_of("quickgelu")


def write(folder: Path, content: Any) -> None:
    folder.mkdir()
    config = {"model_cfg": MODEL_CFG["quickgelu"], "preprocess_cfg": PREPROCESS_CFG["quickgelu"]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(content, folder / "pytorch_model.bin")


@pytest.mark.parametrize("wrap", READ)
def test_what_trainers_write_is_read(wrap: str, tmp_path: Path) -> None:
    """The same CLIP to the bit (in half precision, as its weights are then)."""
    model = copy.deepcopy(original())
    write(tmp_path / "in", READ[wrap](model.state_dict()))
    if wrap == "half precision":
        model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    assert same(convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out"), model)


@pytest.mark.parametrize("wrap", REFUSED)
def test_what_is_no_clip_is_refused_with_what_was_found(wrap: str, tmp_path: Path) -> None:
    change, message = REFUSED[wrap]
    write(tmp_path / "in", change(original().state_dict()))
    with pytest.raises(UserError, match=message):
        convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.visual.", "model.visual.", "clip.visual._orig_mod.", "trunk."]
)
def test_a_visual_tower_in_a_wrapper(prefix: str, tmp_path: Path) -> None:
    """Also of SigLIP, whose own names all begin with trunk."""
    family = "siglip" if prefix == "trunk." else "gelu"
    write_folder(tmp_path / "in", family)
    donor = model_of(family, seed=1)
    tower = donor.visual.state_dict()
    torch.save(tower if family == "siglip" else named(prefix)(tower), tmp_path / "tower.ckpt")
    clip = convert_checkpoint(encoder(tmp_path / "in", visual=str(tmp_path / "tower.ckpt")), tmp_path / "out")
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(clip.embed(pixel_values), donor.encode_image(pixel_values))


@pytest.mark.parametrize("family", ["gelu", "quickgelu"])
def test_our_own_hugging_face_folder_comes_back(family: str, tmp_path: Path) -> None:
    """Exported and imported again: weights to the bit, preprocessing, token ids, and what the configuration says."""
    model = write_folder(tmp_path / "in", family)
    write_export(tmp_path / "in", tmp_path / "hf", "hf")
    clip = convert_checkpoint(encoder(tmp_path / "hf"), tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], value), name
    assert clip.config["preprocess_cfg"] == PREPROCESS_CFG[family]
    assert clip.config["model_cfg"].get("quick_gelu", False) == (family == "quickgelu")
    assert torch.equal(clip.tokenize(TEXTS), load_clip(tmp_path / "in").tokenize(TEXTS))


def test_siglips_folder_comes_back_with_its_architecture(tmp_path: Path, published: Any) -> None:
    """Its own configuration does not say which of timm's towers it is; the message says how to."""
    model = write_folder(tmp_path / "in", "siglip")
    write_export(tmp_path / "in", tmp_path / "hf", "hf")
    with pytest.raises(UserError, match="folder of a siglip, and not of a clip; say its architecture, as --archi"):
        convert_checkpoint(encoder(tmp_path / "hf"), tmp_path / "no")
    clip = convert_checkpoint(encoder(tmp_path / "hf", architecture="siglip:web"), tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], value), name
    with pytest.raises(UserError, match="SiglipModel|is Hugging Face's, and this architecture|does not fit CLIP"):
        convert_checkpoint(encoder(tmp_path / "hf", architecture="gelu:web"), tmp_path / "no")


def hugging_face(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> CLIPModel:
    """A CLIPModel of Hugging Face's own making, saved by it, with its image processor as its hub has it."""
    common = {"num_hidden_layers": 2, "projection_dim": 32, "hidden_act": "gelu"}
    sides = {"hidden_size": 64, "intermediate_size": 100, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    words = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "max_position_embeddings": 16}
    config = CLIPConfig(
        vision_config=common | sides | vision, text_config=common | words | {"vocab_size": 49408} | text,
        projection_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * 0.05)
    model.save_pretrained(folder)
    images = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3}
    images |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return model


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {"eos_token_id": 49407}),
        ({"hidden_act": "quick_gelu"}, {"hidden_act": "quick_gelu", "eos_token_id": 2}),
        ({"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({}, {"eos_token_id": 500}),
    ],
)
@torch.no_grad()
def test_a_folder_of_hugging_faces_own_making(vision: dict[str, Any], text: dict[str, Any], tmp_path: Path) -> None:
    """Its embeddings, whatever activation, epsilon, width and end of text it has."""
    theirs = hugging_face(tmp_path / "in", vision, text)
    clip = convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
    pixel_values, end = torch.randn(3, 3, 32, 32), text.get("eos_token_id", 2)
    ids = torch.randint(3, 400, (2, 16))
    ids[0, 9:], ids[1, 4:] = 0, 0
    ids[0, 9] = ids[1, 4] = 49407 if end == 2 else end
    for ours, wanted in (
        (clip.embed(pixel_values), theirs.get_image_features(pixel_values).pooler_output),
        (clip.model.encode_text(ids), theirs.get_text_features(ids).pooler_output),
    ):
        assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert clip.config["preprocess_cfg"] | {"mean": 0, "std": 0} == {
        "mean": 0, "std": 0, "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "blip"}, "folder of a blip, and not of a clip"),
        ("preprocessor_config.json", {"size": 64}, "prepares images of another size"),
        ("preprocessor_config.json", {"resample": 1}, "must have image_mean, image_std and resample"),
        ("preprocessor_config.json", None, "cannot read .*preprocessor_config.json"),
        ("vocab.json", {"a": 0}, "vocab.json is another vocabulary than CLIP's"),
    ],
)
def test_a_folder_that_is_other_is_refused(file: str, change: Any, message: str, tmp_path: Path) -> None:
    hugging_face(tmp_path / "in", {}, {})
    path = tmp_path / "in" / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
    with pytest.raises(UserError, match=message):
        convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")


def test_a_folder_without_configuration_says_what_it_has(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", "gelu")
    (tmp_path / "in/open_clip_config.json").rename(tmp_path / "in/settings.json")
    with pytest.raises(
        UserError, match="no open_clip_config.json, and no config.json .*; it has open_clip_model.*, set"
    ):
        convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
