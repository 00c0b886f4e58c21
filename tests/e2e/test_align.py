"""An unCLIP for a CLIP that has none: text-to-image and a SigLIP in, aligned, and then the method through it."""

import copy
from pathlib import Path

import torch
from diffusers import StableUnCLIPImg2ImgPipeline

from tests.toy_clips import write_folder
from tests.toy_diffusion import save_text_to_image
from un2clip.config import merge
from un2clip.datasets.shards import samples
from un2clip.decoders import load_generator
from un2clip.models.clip import encoder_sha256, load_clip
from un2clip.stages import run_stage


def test_align_then_un2clip(tiny, tmp_path: Path) -> None:
    """backbones, finetune --method=align, backbones on what it wrote, finetune --method=un2clip: each takes the last's.

    The encoder stays as it is while the generator learns, the statistics are the embeddings' own, and diffusers loads
    the result.
    """
    write_folder(tmp_path / "siglip", "siglip")
    save_text_to_image(tmp_path / "sd")
    section = copy.deepcopy(tiny.params["backbones"])
    section["encoder"]["weights"], section["text_to_image"]["weights"] = str(tmp_path / "siglip"), "none"
    rates = {"lr": {"encoder": 1e-3, "decoder": 1e-3}, "ema_decay": 0.5, "noise": {"condition_dropout": 0.25}}
    finetune = merge(tiny.params["finetune"], {"phases": {"tune": rates}})

    def train(method: str, weights: Path) -> Path:
        section["generator"]["weights"] = str(weights)
        folder, common = tmp_path / method, {"seed": 1, "device": "cpu", "backbones": tmp_path / method / "backbones"}
        run_stage("backbones", section, images=tmp_path / "absent", **common)
        cached = {"shards": tiny.shards, "latents": folder / "latents"}
        run_stage("latents", tiny.params["latents"], device="cpu", backbones=common["backbones"], **cached)
        names = {"method": method, "checkpoints": "", "encoder": folder / "encoder"}
        run_stage("finetune", finetune, **names, **common, **cached)
        return folder

    aligned = train("align", tmp_path / "sd")
    clip, generator = load_clip(aligned / "backbones/clip"), load_generator(aligned / "encoder/decoder")
    assert encoder_sha256(aligned / "encoder") == encoder_sha256(aligned / "backbones/clip")
    assert generator.unet.class_embedding.linear_2.weight.abs().sum() > 0
    assert not torch.equal(generator.std, load_generator(aligned / "backbones/unclip").std)
    embeds = clip.embed(torch.stack([clip.preprocess(sample.image) for sample in samples(tiny.shards / "train")]))
    assert ((generator.mean - embeds.mean(0)) / embeds.std(0)).abs().max() < 0.5  # measured on a third of them
    assert (generator.std / embeds.std(0)).log().abs().max() < 0.5
    StableUnCLIPImg2ImgPipeline.from_pretrained(aligned / "encoder/decoder", image_encoder=None)

    tuned = train("un2clip", aligned / "encoder/decoder")
    assert encoder_sha256(tuned / "encoder") != encoder_sha256(tuned / "backbones/clip")
    after = load_generator(tuned / "backbones/unclip").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in generator.state_dict().items())
