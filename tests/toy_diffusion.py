"""Stable Diffusion 2.1's own classes at toy width, with what the laptop's generator lacks: text and PNDM."""

import json
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.tokenizer import bytes_to_unicode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_PX = 32


def toy_tokenizer(context_length: int) -> CLIPTokenizer:
    """CLIP's own with the first 500 of its merges: with all of them, reading it takes longer than all the rest."""
    merges, letters = list(open_clip.SimpleTokenizer().bpe_ranks)[:500], list(bytes_to_unicode().values())
    words = [*letters, *(f"{each}</w>" for each in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def save_text_to_image(
    folder: Path, prediction_type: str = "v_prediction", tokenizer: CLIPTokenizer | None = None
) -> None:
    """A directory in StableDiffusionPipeline's layout with random weights and SD-2.1's scheduler configuration."""
    tokenizer = tokenizer or toy_tokenizer(16)
    torch.manual_seed(3)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_PX,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=IMAGE_PX // 2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        cross_attention_dim=24,
        use_linear_projection=True,
        upcast_attention=True,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    _as_published(folder / "tokenizer")


def _as_published(folder: Path) -> None:
    """The published directories have the slow tokenizer's files, and pad with `!`, as OpenCLIP does."""
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    for file in folder.iterdir():
        file.unlink()
    (folder / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]))
    words = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(words))
    options = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(words | options))
