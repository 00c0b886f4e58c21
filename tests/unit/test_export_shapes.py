"""Exports of what open_clip builds beside the plain CLIP: the same model, or refused by the name of what is other."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.toy_clips import MODEL_CFG, PREPROCESS_CFG, write_folder, write_tokenizer
from un2clip.errors import UserError
from un2clip.models import exporting
from un2clip.models.clip import WEIGHTS, Clip, load_clip
from un2clip.models.converting import new_model
from un2clip.models.exporting import Form, Loaded, load_hugging_face, of_hugging_face, write_export
from un2clip.models.huggingface import to_hugging_face

Changes = dict[str, Any]
SAME: tuple[Form, ...] = ("hf", "openai")
#: name -> changes of the image tower's, the text tower's and the model's configuration (None takes a key away), the
#: forms that can say it, and what else the refusal names.
SHAPES: dict[str, tuple[Changes, Changes, Changes, tuple[str, ...], str]] = {
    "plain": ({}, {}, {}, SAME, ""),
    "gelu": ({}, {}, {"quick_gelu": False}, ("hf",), "its activation is GELU"),
    "tanh": ({"act_kwargs": {"approximate": "tanh"}}, {}, {"quick_gelu": False}, ("hf",), "its activation is GELU"),
    "eps": ({"norm_kwargs": {"eps": 1e-3}}, {}, {}, ("hf",), "another epsilon"),
    "eps of texts": ({}, {"norm_kwargs": {"eps": 1e-3}}, {}, ("hf",), "another epsilon"),
    "layer scale": ({"ls_init_value": 0.5}, {}, {}, SAME, ""),
    "layer scale of texts": ({}, {"ls_init_value": 0.5}, {}, SAME, ""),
    "LayerNorm after the pooling": ({"final_ln_after_pool": True}, {}, {}, SAME, ""),
    "sine and cosine": ({"pos_embed_type": "sin_cos_2d"}, {}, {}, SAME, ""),
    "patch dropout": ({"patch_dropout": 0.5}, {}, {}, SAME, ""),
    "wide MLP": ({"mlp_ratio": 3.7362}, {}, {}, ("hf",), "image tower's MLPs are not 4 times"),
    "narrow heads": ({"head_width": 32}, {}, {}, ("hf",), "heads are 32 wide"),
    "lists": ({"image_size": [32, 32], "patch_size": [8, 8]}, {}, {}, SAME, ""),
    "no context_length": ({}, {"context_length": None}, {}, SAME, ""),
    "no sizes": ({"patch_size": None, "image_size": None}, {}, {}, SAME, ""),
    "custom text": ({}, {}, {"custom_text": True}, SAME, ""),
    "custom text, layer scale": ({}, {"ls_init_value": 0.5}, {"custom_text": True}, SAME, ""),
    "logit scale of a vector": ({}, {}, {"nonscalar_logit_scale": True}, SAME, ""),
    "no text projection": ({}, {"proj_type": "none", "width": 64}, {"embed_dim": 64}, SAME, ""),
    "end token": ({}, {"pool_type": "eos", "eos_id": 49407}, {}, ("hf",), "its texts end with token 49407"),
    "more words": ({}, {"vocab_size": 49500}, {}, SAME, ""),
    "average": ({"pool_type": "avg"}, {}, {}, (), "pools by the patches' average"),
    "no ln_pre": ({"no_ln_pre": True}, {}, {}, (), "its image tower has no ln_pre"),
    "attention pool": ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, {}, (), "pools by attention"),
    "oblong": ({"image_size": [32, 64]}, {}, {}, (), "its images are 32 x 64 px"),
    "oblong patches": ({"patch_size": [8, 16]}, {}, {}, (), "its patches are 8 x 16 px"),
    "normed queries": ({"qk_norm": True}, {}, {}, (), "its image tower's blocks are CustomResidualAttentionBlocks"),
    "scaled heads": ({}, {"scale_heads": True}, {}, (), "its text tower's blocks are CustomResidualAttentionBlocks"),
    "ResNet": ({"layers": [1, 1, 1, 1], "width": 8}, {}, {}, (), "its image tower is a ModifiedResNet"),
    "last token": ({}, {"pool_type": "last"}, {}, (), "pools by the last token"),
    "first token": ({}, {"pool_type": "first"}, {}, (), "pools by the first token"),
    "no mask": ({}, {"no_causal_mask": True}, {}, (), "its text tower has no causal mask"),
    "bias": ({}, {"proj_bias": True}, {}, (), "its text projection has a bias"),
    "own class token": ({}, {"embed_cls": True}, {"custom_text": True}, (), "a class token of its own"),
    "logit bias": ({}, {}, {"init_logit_bias": -10}, (), "it has a logit bias"),
}  # fmt: skip


def changed(base: Changes, changes: Changes) -> Changes:
    return {key: value for key, value in (base | changes).items() if value is not None}


def write_shape(folder: Path, family: str, vision: Changes, text: Changes, whole: Changes) -> None:
    """A CLIP folder of such a configuration, with random weights, none of them at its starting value."""
    cfg = MODEL_CFG[family] | whole
    cfg |= {"vision_cfg": changed(cfg["vision_cfg"], vision), "text_cfg": changed(cfg["text_cfg"], text)}
    if cfg["text_cfg"].get("context_length") is None:
        cfg["text_cfg"]["layers"] = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = new_model(cfg).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * (0.1 if value.ndim < 2 else 0.02))
    folder.mkdir(parents=True)
    config = {"model_cfg": cfg, "preprocess_cfg": PREPROCESS_CFG[family]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    if family == "siglip":
        write_tokenizer(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_the_same_model_or_refused_by_name(shape: str, tmp_path: Path) -> None:
    """In both forms, by pixels and texts other than the export's own; after a refusal there is no folder."""
    vision, text, whole, forms, reason = SHAPES[shape]
    write_shape(tmp_path / "in", "quickgelu", vision, text, whole)
    clip = load_clip(tmp_path / "in")
    for form in SAME:
        if form not in forms:
            with pytest.raises(UserError, match=f"{reason}.*use --format=open_clip"):
                write_export(tmp_path / "in", tmp_path / form, form)
            assert not (tmp_path / form).exists()
    if "hf" in forms:
        compare(clip, of_hugging_face(to_hugging_face(clip)))
    if "openai" in forms:
        write_export(tmp_path / "in", tmp_path / "openai", "openai")
        for value in clip.model.parameters():
            value.data = value.data.half().float()
        theirs = open_clip.load_openai_model(str(tmp_path / "openai/openai_clip.pt"), device="cpu", precision="fp32")
        compare(clip, Loaded(images=theirs.encode_image, texts=theirs.encode_text), within=2e-3)


@pytest.mark.parametrize("shape", ["layer scale", "custom text", "end token"])
def test_a_written_folder_is_the_same_model(shape: str, tmp_path: Path) -> None:
    """The whole way through the files, of shapes that change weights, names or configuration."""
    vision, text, whole, _, _ = SHAPES[shape]
    write_shape(tmp_path / "in", "quickgelu", vision, text, whole)
    write_export(tmp_path / "in", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf/.export.partial").exists()
    compare(load_clip(tmp_path / "in"), load_hugging_face(tmp_path / "hf"))


@torch.no_grad()
def compare(clip: Clip, theirs: Loaded, within: float = 1e-5) -> None:
    pixel_values = torch.randn(3, 3, *clip.image_size)
    ids = clip.tokenize(["a photo of a cat", "", "x " * 99])
    for ours, found in (
        (clip.embed(pixel_values), theirs.images(pixel_values)),
        (clip.model.encode_text(ids), theirs.texts(ids)),
    ):
        assert (ours - found).norm(dim=1).max() <= within * ours.norm(dim=1).max()


SIGLIP: dict[str, tuple[Changes, Changes, Changes, str]] = {
    "causal": ({}, {"no_causal_mask": False}, {}, "its text tower has a causal mask"),
    "first": ({}, {"pool_type": "first"}, {}, "pools by the first token"),
    "no bias": ({}, {"proj_bias": False}, {}, "its text projection has no bias"),
    "no logit bias": ({}, {}, {"init_logit_bias": None}, "it has no logit bias"),
    "class pooling": ({"timm_pool": "avg"}, {}, {}, "has no pooling by attention"),
}


@pytest.mark.parametrize("shape", SIGLIP)
def test_what_is_not_siglip_is_refused_by_name(shape: str, tmp_path: Path) -> None:
    vision, text, whole, reason = SIGLIP[shape]
    write_shape(tmp_path / "in", "siglip", vision, text, whole)
    with pytest.raises(UserError, match=reason):
        write_export(tmp_path / "in", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"visual.extra": torch.zeros(1)}, "CLIPModel has no place for visual.extra"),
        (lambda state: {k: v for k, v in state.items() if k != "visual.ln_pre.bias"}, "needs 'visual.ln_pre.bias'"),
        (lambda state: state | {"visual.proj": state["visual.proj"] * 1.001}, "image embeddings are 1.0e-03 of their"),
        (lambda state: state | {"ln_final.bias": state["ln_final.bias"] + 1}, "text embeddings are"),
    ],
)
def test_a_mistake_of_the_tables_is_seen(tmp_path: Path, monkeypatch, change: Any, message: str) -> None:
    """A tensor that nobody reads, one that is wanted, a wrong factor or bias: each is refused, nothing written."""
    write_folder(tmp_path / "in", "gelu")
    plain = exporting.plain_state
    monkeypatch.setattr("un2clip.models.huggingface.plain_state", lambda clip: change(plain(clip)))
    with pytest.raises(UserError, match=message):
        write_export(tmp_path / "in", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


def test_an_export_that_was_killed_is_made_again(tmp_path: Path) -> None:
    """What a killed one left is replaced, and other files are not."""
    write_folder(tmp_path / "in", "gelu")
    (tmp_path / "out/.export.partial").mkdir(parents=True)
    (tmp_path / "out/.export.partial/half").write_text("x")
    write_export(tmp_path / "in", tmp_path / "out", "open_clip")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "open_clip_config.json", WEIGHTS,
    ]  # fmt: skip
    with pytest.raises(UserError, match="is in use"):
        write_export(tmp_path / "in", tmp_path / "out", "open_clip")


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    """The files arrive where the link leads."""
    write_folder(tmp_path / "in", "gelu")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write_export(tmp_path / "in", tmp_path / "out", "open_clip")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / WEIGHTS).is_file()
