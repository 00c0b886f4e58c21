"""InternVL's image tower and connector as an encoder: in, through every stage that can take it, and out again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLModel

from un2clip.config import build, merge
from un2clip.errors import UserError
from un2clip.evidence.scores import collect_scores
from un2clip.methods.features import Encoder
from un2clip.models.clip import CONFIG, encoder_sha256, load_clip
from un2clip.models.converting import Encoder as Source
from un2clip.models.converting import convert_checkpoint
from un2clip.models.exporting import write_export
from un2clip.stages import run_stage

SIZES = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": [32, 32], "patch_size": [4, 4], "attention_bias": True,
    },
    "text_config": {
        "model_type": "qwen2", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    },
    "image_token_id": 5,
}  # fmt: skip


def source(folder: Path, architecture: str = "") -> Source:
    return build(
        Source,
        {"weights": str(folder), "architecture": architecture, "revision": "", "sha256": {}, "visual": ""},
        "backbones.encoder",
    )


@pytest.fixture(scope="module")
def internvl(tmp_path_factory) -> tuple[InternVLForConditionalGeneration, Path]:
    """A whole InternVL of toy size, language model and all, as transformers writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InternVLForConditionalGeneration(InternVLConfig(**SIZES)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("internvl")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens_of(model: InternVLModel | InternVLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    return model.get_image_features(pixel_values=pixel_values).pooler_output


def test_its_tokens_are_transformers_bit_for_bit(internvl, pixels, tmp_path) -> None:
    """Read, and read again from what was written; larger images too, by transformers' own interpolation."""
    model, folder = internvl
    for clip in (convert_checkpoint(source(folder), tmp_path / "clip"), load_clip(tmp_path / "clip")):
        encoder = Encoder(clip.model.visual, "raw")
        assert clip.image_size == (32, 32) and clip.embed_dim == 24 and encoder.patch_px == 8
        with torch.no_grad():
            for pixel_values in (pixels, torch.randn(1, 3, 48, 48)):
                found = encoder(pixel_values)
                assert torch.equal(found.tokens, tokens_of(model, pixel_values)) and found.pooled is None
        with pytest.raises(UserError, match="^a side of 36 px is not a multiple of the encoder's patch of 8 px$"):
            encoder(torch.zeros(1, 3, 36, 36))
    with pytest.raises(UserError, match="InternVL's encoder has no embedding that texts could be compared with"):
        clip.embed(pixels)
    with pytest.raises(UserError, match="^this encoder has no text tower, so it reads no texts$"):
        clip.embed_texts(["a photo"])
    assert {path.name for path in (tmp_path / "clip").iterdir()} == {CONFIG, "open_clip_model.safetensors"}


def test_the_export_goes_back_into_an_internvl(internvl, pixels, tmp_path) -> None:
    """Of a tuned encoder: one that transformers reads from it, and one that takes its tensors in, are equal to it."""
    _, folder = internvl
    clip = convert_checkpoint(source(folder), tmp_path / "clip")
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.mul_(1.01)
        wanted = clip.model.visual(pixels)
    save_file(
        {name: value.contiguous() for name, value in clip.model.state_dict().items()},
        tmp_path / "clip/open_clip_model.safetensors",
    )
    said = write_export(tmp_path / "clip", tmp_path / "out", "internvl")
    assert said == f"transformers.InternVLModel.from_pretrained({str(tmp_path / 'out')!r})"
    assert torch.equal(tokens_of(InternVLModel.from_pretrained(tmp_path / "out").eval(), pixels), wanted)
    whole = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    assert not torch.equal(tokens_of(whole, pixels), wanted)
    fits = whole.load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=False)
    assert not fits.unexpected_keys and all("language_model" in key or "lm_head" in key for key in fits.missing_keys)
    assert torch.equal(tokens_of(whole, pixels), wanted)
    assert (
        whole.generate(input_ids=torch.tensor([[1, *[5] * 16, 2]]), pixel_values=pixels[:1], max_new_tokens=2).shape[1]
        > 0
    )


def test_other_forms_of_export_are_refused(internvl, tiny, tmp_path) -> None:
    """And this form of another encoder; nothing is written."""
    convert_checkpoint(source(internvl[1]), tmp_path / "clip")
    for folder, form in (
        (tmp_path / "clip", "hf"),
        (tmp_path / "clip", "open_clip"),
        (tiny.backbones / "clip", "internvl"),
    ):
        with pytest.raises(UserError, match="an encoder of InternVL's is exported by --format=internvl, and no other"):
            write_export(folder, tmp_path / "out", form)
        assert not (tmp_path / "out").exists()


def test_what_is_no_internvl_is_said(internvl, tmp_path) -> None:
    """The layout of InternVL's own code, a tensor that is missing, sizes that are not the weights', a wrong name."""
    _, folder = internvl
    copy = shutil.copytree(folder, tmp_path / "own")
    tensors = load_file(copy / "model.safetensors")
    save_file({f"vision_model.{i}": value for i, value in enumerate(tensors.values())}, copy / "model.safetensors")
    with pytest.raises(UserError, match="no tensors of an InternVL as transformers names them .* ends in -hf"):
        convert_checkpoint(source(copy), tmp_path / "a")
    lost = next(name for name in tensors if "lambda_1" in name)
    save_file({name: value for name, value in tensors.items() if name != lost}, copy / "model.safetensors")
    with pytest.raises(UserError, match="does not fit Textless: visual.vision_tower.*lambda_1 is missing"):
        convert_checkpoint(source(copy), tmp_path / "b")
    with pytest.raises(UserError, match="architecture of InternVL 'InternVL9-1B'.*known: InternVL3-1B, InternVL3-2B"):
        convert_checkpoint(source(folder, "InternVL9-1B"), tmp_path / "c")
    convert_checkpoint(source(folder), tmp_path / "d")
    config = json.loads((tmp_path / "d" / CONFIG).read_text())
    config["model_cfg"]["internvl"]["vision_config"]["hidden_size"] = 10**9
    (tmp_path / "d" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="the configuration says hidden_size 1000000000, and the weights have"):
        load_clip(tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_the_whole_way(internvl, tiny, tmp_path, capsys) -> None:
    """Backbones without an unCLIP, fine-tuning in three stages, the benchmark, pictures, the page; by the stages."""
    changes = {
        "encoder": {"weights": str(internvl[1])},
        "generator": {"weights": "none"},
        "text_to_image": {"weights": "none"},
    }
    folders = {name: tmp_path / name for name in ("backbones", "latents", "encoder", "scores", "pictures", "report")}
    section = merge(tiny.params["backbones"], changes)
    run_stage("backbones", section, seed=1, device="cpu", images=tiny.images, backbones=folders["backbones"])
    assert [path.name for path in folders["backbones"].iterdir()] == ["clip"]
    here = {"device": "cpu", "backbones": folders["backbones"]}
    run_stage("latents", tiny.params["latents"], shards=tiny.shards, latents=folders["latents"], **here)
    tune = merge(
        tiny.params["finetune"], {"phases": {"unilip-3": {"image_px": 48}}, "conditions": {"spatial": {"merge": 1}}}
    )
    parts = {"shards": tiny.shards, "latents": folders["latents"], "encoder": folders["encoder"]}
    run_stage("finetune", tune, method="unilip-high", seed=1, checkpoints="", **parts, **here)
    history = json.loads((folders["encoder"] / "history.json").read_text())
    assert [row["tokens"] for row in history[:4]] == [0.0] * 4 and history[-1]["tokens"] > 0 and len(history) == 9
    run_stage(
        "diffusion_loss",
        tiny.params["diffusion_loss"],
        seed=1,
        scores=folders["scores"] / "diffusion_loss",
        **parts,
        **here,
    )
    asked = {"benchmarks": tiny.benchmarks, "encoder": folders["encoder"], "checkpoints": "", **here}
    run_stage(
        "evaluate",
        tiny.params["evaluate"],
        benchmark="reconstruction",
        scores=folders["scores"] / "reconstruction",
        **asked,
    )
    found = collect_scores([folders["scores"]])
    assert list(found) == ["reconstruction", "reconstruction-frechet", "reconstruction-ssim"]
    assert found["reconstruction"]["tuned"].encoder_sha256 == encoder_sha256(folders["encoder"])
    drawn = {"shards": tiny.shards, "encoder": folders["encoder"], "reconstructions": folders["pictures"]}
    run_stage("reconstruct", tiny.params["reconstruct"], seed=1, **drawn, **here)
    made = {"scores": [folders["scores"]], "encoder": folders["encoder"], "reconstructions": folders["pictures"]}
    run_stage("compare", tiny.params["compare"], seed=1, **made, report=folders["report"])
    assert "reconstruction" in (folders["report"] / "index.html").read_text()
    out = capsys.readouterr().out
    assert "latents: there is no unCLIP" in out and "diffusion_loss: there is no unCLIP" in out
    with pytest.raises(UserError, match="this encoder has no text tower"):
        run_stage("evaluate", tiny.params["evaluate"], benchmark="zeroshot", scores=tmp_path / "zeroshot", **asked)
