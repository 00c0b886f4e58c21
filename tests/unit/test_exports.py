"""Each export is loaded by the other library, and gives the same embeddings of images and texts."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionModel,
)

from tests.toy_clips import FAMILIES, TEXTS, write_folder
from un2clip.__main__ import main
from un2clip.errors import UserError
from un2clip.models.clip import load_clip, save_clip
from un2clip.models.exporting import write_export
from un2clip.models.huggingface import to_hugging_face_vision

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No library may ask the hub for anything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    assert one.shape == other.shape
    return bool((one - other).abs().max() <= 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hugging_face_gives_the_same_embeddings(tmp_path, family) -> None:
    """AutoModel and AutoProcessor of the folder: image, text (through its own tokenizer), and logits."""
    write_folder(tmp_path / "in", family)
    clip = load_clip(tmp_path / "in")
    assert "AutoModel" in write_export(tmp_path / "in", tmp_path / "hf", "hf")
    model, processor = (cls.from_pretrained(tmp_path / "hf") for cls in (AutoModel, AutoProcessor))
    tokens = processor(text=TEXTS, return_tensors="pt", padding="max_length", truncation=True)
    found = model(pixel_values=PIXELS, input_ids=tokens.input_ids)
    images, texts = clip.embed(PIXELS), clip.embed_texts(TEXTS)
    assert close(model.get_image_features(PIXELS).pooler_output, images)
    assert close(model.get_text_features(tokens.input_ids).pooler_output, texts)
    unit = [value / value.norm(dim=-1, keepdim=True) for value in (images, texts)]
    logits = clip.model.logit_scale.exp() * unit[0] @ unit[1].T
    logits = logits + clip.model.logit_bias if family == "siglip" else logits
    assert torch.allclose(found.logits_per_image, logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_folder_is_a_vision_tower_for_llava(tmp_path, family) -> None:
    """The vision class alone loads every weight and sees what the whole model sees."""
    write_folder(tmp_path / "in", family)
    clip = load_clip(tmp_path / "in")
    write_export(tmp_path / "in", tmp_path / "hf", "hf")
    cls = SiglipVisionModel if family == "siglip" else CLIPVisionModel
    tower, info = cls.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    pooled = tower(PIXELS).pooler_output
    embedding = pooled if family == "siglip" else pooled @ clip.model.visual.proj
    assert close(embedding, clip.embed(PIXELS))
    if family != "siglip":
        assert close(to_hugging_face_vision(clip)(PIXELS).image_embeds, clip.embed(PIXELS))
        full = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "hf")
        assert close(full(PIXELS).image_embeds, clip.embed(PIXELS))


@pytest.mark.parametrize("family", ["gelu", "siglip"])
def test_the_processor_prepares_images_alike(tmp_path, family) -> None:
    """Within the rounding of 8 bits; the shape of the picture is not square, so crop and squash differ."""
    write_folder(tmp_path / "in", family)
    clip = load_clip(tmp_path / "in")
    write_export(tmp_path / "in", tmp_path / "hf", "hf")
    smooth = np.kron(np.random.default_rng(0).integers(0, 256, (6, 10, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    cls = SiglipImageProcessor if family == "siglip" else CLIPImageProcessor
    for read in (cls, AutoProcessor):
        found = read.from_pretrained(tmp_path / "hf")(images=Image.fromarray(smooth), return_tensors="pt").pixel_values
        assert (found[0] - clip.preprocess(Image.fromarray(smooth))).abs().max() < 3 / 255 / 0.26


@torch.no_grad()
def test_openais_file_is_read_by_their_loader(tmp_path) -> None:
    """open_clip's copy of OpenAI's build_model; it rounds to half precision, so the weights are such already."""
    write_folder(tmp_path / "in", "quickgelu")
    clip = load_clip(tmp_path / "in")
    for value in clip.model.parameters():
        value.copy_(value.half().float())
    save_clip(clip, tmp_path / "half")
    assert "clip.load" in write_export(tmp_path / "half", tmp_path / "openai", "openai")
    theirs = open_clip.load_openai_model(str(tmp_path / "openai/openai_clip.pt"), device="cpu")
    assert close(theirs.encode_image(PIXELS), clip.embed(PIXELS))
    assert close(theirs.encode_text(open_clip.tokenize(TEXTS, 16)), clip.embed_texts(TEXTS))


def test_what_openais_loader_would_get_wrong_is_refused(tmp_path) -> None:
    """GELU, other heads, SigLIP, another preprocessing: each with its reason, and nothing written."""
    for family, message in (("gelu", "its activation is GELU"), ("siglip", "image tower is a TimmModel")):
        write_folder(tmp_path / family, family)
        with pytest.raises(UserError, match=message):
            write_export(tmp_path / family, tmp_path / "out", "openai")
    write_folder(tmp_path / "in", "quickgelu")
    config = json.loads((tmp_path / "in/open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["head_width"] = 32
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (tmp_path / "in/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="image tower's heads are 32 wide, its resize_mode is squash"):
        write_export(tmp_path / "in", tmp_path / "out", "openai")
    assert not (tmp_path / "out").exists()


def test_the_command_line_exports_a_folder(tmp_path, capsys) -> None:
    """`un2clip export --from FOLDER`: the same bytes as open_clip; a folder in use is left alone."""
    write_folder(tmp_path / "in", "siglip")
    assert main(["export", f"--from={tmp_path / 'in'}", f"--to={tmp_path / 'out'}"]) == 0
    assert "local-dir:" in capsys.readouterr().out
    for path in (tmp_path / "in").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert main(["export", f"--from={tmp_path / 'in'}", f"--to={tmp_path / 'out'}", "--format=hf"]) == 2
    assert "is in use" in capsys.readouterr().err
