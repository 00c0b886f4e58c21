"""Stage `backbones`: on a laptop, what you would otherwise download. A tiny CLIP, and the tiny unCLIP that inverts it.

Real classes at toy width: open_clip's CLIP; diffusers' AutoencoderKL and UNet2DConditionModel, written in
StableUnCLIPImg2ImgPipeline's layout, so that diffusers itself loads and samples it.
"""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from open_clip.model import CLIP
from open_clip.tokenizer import default_bpe
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from un2clip import tracking
from un2clip.checkpoint import Clip, load_clip, save_clip
from un2clip.config import UserError
from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import samples
from un2clip.decoder import Generator, load_generator, save_generator
from un2clip.huggingface import to_hugging_face_vision
from un2clip.methods import METHODS
from un2clip.train import Training, fit


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Shape and training of the tiny CLIP; names as in open_clip's configurations."""

    embed_dim: int
    image_px: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    text_width: int
    text_layers: int
    context_length: int
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class VaeSize:
    """Shape and training of the tiny VAE; names as in diffusers' AutoencoderKL."""

    block_out_channels: tuple[int, ...]
    latent_channels: int
    steps: int
    batch_size: int
    lr: float
    kl_weight: float


@dataclass(frozen=True, kw_only=True)
class UnetSize:
    """Shape and training of the tiny generator; names as in diffusers' UNet2DConditionModel."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_head_dim: int
    prediction_type: Literal["epsilon", "v_prediction"]
    batch_size: int
    training: Training


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The section `backbones` of params.yaml, which says what each number means."""

    clip: ClipSize
    vae: VaeSize
    unet: UnetSize


def backbones(params: Backbones, *, seed: int, images: Path, backbones: Path) -> None:
    """Train a CLIP on image-text pairs, a VAE on the images, and an unCLIP on both.

    Args:
        seed: initialisation, order and noise.
        images: train/*.tar of the laptop world.
        backbones: folder that gets clip/ (open_clip) and unclip/ (StableUnCLIPImg2ImgPipeline).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = new_clip(params.clip, backbones / "clip")
        pixel_values, pictures, texts = _read(clip, images / "train", params)
        train_clip(clip, pixel_values, texts, params.clip)
        save_clip(clip, backbones / "clip")
        vae = new_vae(params)
        train_vae(vae, pictures, params.vae)
        new_unclip(clip, vae, params, _embed(clip, pixel_values)).save_pretrained(
            backbones / "unclip", safe_serialization=True
        )
        generator = load_generator(backbones / "unclip")
        latents = torch.cat([generator.encode(part) for part in pictures.split(256)])
        train_unclip(clip, generator, pixel_values, latents, params.unet, seed)
        save_generator(generator, like=backbones / "unclip", folder=backbones / "unclip")


def _read(clip: Clip, folder: Path, params: Backbones) -> tuple[Tensor, Tensor, Tensor]:
    """The whole laptop world in memory: pixel_values, images for the VAE, token ids."""
    view = generator_view(params.clip.image_px)
    read = list(tqdm(samples(folder), unit="image", desc="read", mininterval=1))
    largest = max(params.clip.batch_size, params.vae.batch_size, params.unet.batch_size)
    if len(read) < largest:
        raise UserError(
            f"{folder} holds {len(read)} samples, fewer than one batch of {largest}; lower backbones' batch sizes"
        )
    pixel_values = torch.stack([clip.preprocess(sample.image) for sample in read])
    return pixel_values, torch.stack([view(sample.image) for sample in read]), clip.tokenize([s.caption for s in read])


def new_clip(size: ClipSize, folder: Path) -> Clip:
    """A CLIP of this size with random weights, built by open_clip from the configuration that is saved with it."""
    model_cfg = {
        "embed_dim": size.embed_dim,
        "vision_cfg": {
            "image_size": size.image_px,
            "patch_size": size.patch_size,
            "width": size.width,
            "layers": size.layers,
            "head_width": size.head_width,
        },
        "text_cfg": {
            "context_length": size.context_length,
            "vocab_size": 49408,  # of CLIP's own BPE, which open_clip ships
            "width": size.text_width,
            "heads": max(1, size.text_width // size.head_width),
            "layers": size.text_layers,
        },
    }
    preprocess_cfg = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    raw = Clip(model=CLIP(**model_cfg), preprocess=None, tokenize=None, config=config)  # type: ignore[arg-type]
    save_clip(raw, folder)
    return load_clip(folder)


def train_clip(clip: Clip, pixel_values: Tensor, texts: Tensor, size: ClipSize) -> None:
    """Contrastive training (arXiv 2103.00020, figure 3), cosine rate with warm-up; in place."""
    model = clip.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.lr, weight_decay=size.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = _cosine(optimizer, size.steps, size.warmup_steps)
    targets = torch.arange(size.batch_size)
    progress = tqdm(
        _orders(len(texts), size.batch_size, size.steps), total=size.steps, unit="step", desc="clip", mininterval=1
    )
    for step, index in enumerate(progress):
        image_features, text_features, logit_scale = model(pixel_values[index], texts[index])[:3]
        logits = logit_scale * image_features @ text_features.T
        loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as in the paper
        tracking.log_metrics(step, {"clip_loss": loss.item()})
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def new_vae(params: Backbones) -> AutoencoderKL:
    """A VAE whose residual blocks start as the identity, which a few hundred steps need (arXiv 1901.09321)."""
    channels = params.vae.block_out_channels
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        latent_channels=params.vae.latent_channels,
        norm_num_groups=8,
        sample_size=params.clip.image_px,
        mid_block_add_attention=False,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return vae


def train_vae(vae: AutoencoderKL, images: Tensor, size: VaeSize) -> None:
    """Reconstruction and a small KL term (arXiv 2112.10752, appendix G), then the scale for unit variance; in place."""
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=size.lr, fused=True)
    schedule = _cosine(optimizer, size.steps, size.steps // 20)
    progress = tqdm(
        _orders(len(images), size.batch_size, size.steps), total=size.steps, unit="step", desc="vae", mininterval=1
    )
    for step, index in enumerate(progress):
        posterior = vae.encode(images[index]).latent_dist
        loss = mse_loss(vae.decode(posterior.sample()).sample, images[index]) + size.kl_weight * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tracking.log_metrics(step, {"vae_loss": loss.item()})
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    with torch.no_grad():
        std = torch.cat([vae.encode(part).latent_dist.mean for part in images[:1024].split(256)]).std().item()
    vae.register_to_config(scaling_factor=1 / std)


def new_unclip(clip: Clip, vae: AutoencoderKL, params: Backbones, image_embeds: Tensor) -> StableUnCLIPImg2ImgPipeline:
    """The whole pipeline with an untrained U-Net; the normaliser's statistics are measured on the data."""
    size, dim = params.unet, clip.embed_dim
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=dim)
    normalizer.mean.data.copy_(image_embeds.mean(0, keepdim=True))
    normalizer.std.data.copy_(image_embeds.std(0, keepdim=True).clamp_min(1e-6))
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=params.clip.text_width,
            intermediate_size=params.clip.text_width,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=params.clip.context_length,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )
    blocks = len(size.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=params.clip.image_px // 2 ** (len(params.vae.block_out_channels) - 1),
        in_channels=params.vae.latent_channels,
        out_channels=params.vae.latent_channels,
        down_block_types=("DownBlock2D",) * blocks,
        up_block_types=("UpBlock2D",) * blocks,
        block_out_channels=size.block_out_channels,
        layers_per_block=size.layers_per_block,
        attention_head_dim=size.attention_head_dim,
        norm_num_groups=8,
        cross_attention_dim=params.clip.text_width,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * dim,
    )
    mean, std = (clip.config["preprocess_cfg"][key] for key in ("mean", "std"))
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": params.clip.image_px},
            crop_size={"height": params.clip.image_px, "width": params.clip.image_px},
            image_mean=mean,
            image_std=std,
        ),
        image_encoder=to_hugging_face_vision(clip),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=_bpe_tokenizer(params.clip.context_length),
        text_encoder=text_encoder,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            prediction_type=size.prediction_type,
            rescale_betas_zero_snr=False,
        ),
        vae=vae,
    )


def train_unclip(
    clip: Clip, generator: Generator, pixel_values: Tensor, latents: Tensor, size: UnetSize, seed: int
) -> None:
    """Row `align` of the method table: the generator learns to draw from this CLIP's embeddings; in place."""

    def batches() -> Iterator[tuple[list[str], Tensor, Tensor]]:
        for index in _orders(len(latents), size.batch_size, size.training.steps):
            yield [str(i) for i in index.tolist()], pixel_values[index], latents[index]

    fit(
        clip.model,
        generator,
        METHODS["align"],
        size.training,
        batches(),
        torch.Generator().manual_seed(seed),
        lambda step, record: tracking.log_metrics(step, {f"unclip_{name}": value for name, value in record.items()}),
    )


def _orders(total: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Indices of `steps` full batches, each epoch in an order of its own (the global random state decides it)."""
    done = 0
    while True:
        for index in torch.randperm(total)[: total // batch_size * batch_size].split(batch_size):
            if done == steps:
                return
            yield index
            done += 1


def _cosine(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


@torch.no_grad()
def _embed(clip: Clip, pixel_values: Tensor) -> Tensor:
    return torch.cat([clip.model.encode_image(part) for part in pixel_values.split(256)])


def _bpe_tokenizer(context_length: int) -> CLIPTokenizer:
    """Hugging Face's CLIPTokenizer over the vocabulary that open_clip ships."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # as open_clip's SimpleTokenizer reads it
    merges = [tuple(line.split()) for line in lines]
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): i for word, i in open_clip.SimpleTokenizer().encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
