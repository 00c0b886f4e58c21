"""Stage `backbones`: the CLIP to be tuned, and the generators that a method trains through.

Of each, what you have or download, verified; or, for a laptop, a tiny one trained here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from un2clip.config import at_least, lookup
from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import samples
from un2clip.decoders import load_generator, save_generator
from un2clip.decoders.assemble import measure_statistics
from un2clip.decoders.fetching import (
    NONE,
    TOY,
    GeneratorSource,
    PixelsSource,
    fetch_generator,
    fetch_pixels,
    fetch_text_to_image,
)
from un2clip.decoders.folder import load_text_to_image
from un2clip.decoders.perceptual import FOLDER, PerceptualSource, fetch_perceptual
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.models.clip import Clip, save_clip
from un2clip.models.converting import Encoder, convert_checkpoint
from un2clip.training.config import PhaseConfig
from un2clip.world.clip import ClipSize, Words, new_clip, train_clip, train_words
from un2clip.world.text_to_image import embed_captions, new_text_to_image, train_text_to_image
from un2clip.world.training import Schooling
from un2clip.world.unclip import UnetSize, new_unclip, train_unclip
from un2clip.world.vae import VaeSize, new_vae, train_vae


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The section `backbones`: params.yaml and, of what is trained here, world.yaml say what each number means."""

    encoder: Encoder
    generator: GeneratorSource
    text_to_image: GeneratorSource
    pixels: PixelsSource
    perceptual: PerceptualSource
    clip: ClipSize
    vae: VaeSize
    unet: UnetSize
    words: Words
    precision: Literal["fp32", "bf16"]
    checkpoint_every: int
    phases: dict[str, PhaseConfig]

    def __post_init__(self) -> None:
        at_least(self, 1, "checkpoint_every")
        for name in ("words", "clip", "vae", "unet"):
            lookup(self.phases, name, "phase of backbones.phases")


@dataclass(frozen=True, kw_only=True)
class World:
    """The whole laptop world in memory: pixel_values for the CLIP, images for the VAE, captions."""

    pixel_values: Tensor
    images: Tensor
    captions: list[str]


def backbones(params: Backbones, *, seed: int, device: str, images: Path, backbones: Path) -> None:
    """Write the CLIP and the generators: toys learn from the laptop world, others are fetched.

    Args:
        seed: initialisation, order and noise.
        device: auto, cpu or cuda.
        images: train/*.tar of the laptop world; read for toys only.
        backbones: folder that gets clip/ (open_clip) and, where there is one, unclip/ (StableUnCLIPImg2ImgPipeline),
            text_to_image/ (StableDiffusionPipeline), pixels/ and perceptual/.
    """
    make(params, seed=seed, device=device, images=images, backbones=backbones, state=None)


def make(params: Backbones, *, seed: int, device: str, images: Path, backbones: Path, state: Path | None) -> None:
    """The stage; with a `state`, a folder for this very call, toys that are cut off go on from there."""
    toys = [each.weights == TOY for each in (params.encoder, params.generator, params.text_to_image)]
    folder, where = backbones / "clip", pick_device(device)
    schooling = Schooling(seed=seed, precision=params.precision, checkpoint_every=params.checkpoint_every, state=state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = new_clip(params.clip, folder) if toys[0] else convert_checkpoint(params.encoder, folder)
        clip.model.to(where)
        world = _read(clip, images / "train", params, where) if any(toys) else None
        if toys[0] and world:
            _train_clip(params, clip, world, schooling)
            save_clip(clip, folder)
        vae = _train_vae(params, world, schooling) if world and (toys[1] or toys[2]) else None
        if vae and world and toys[1]:
            _train_unclip(params, clip, vae, world, schooling, backbones / "unclip")
        elif params.generator.weights != NONE:
            fetch_generator(params.generator, clip, backbones / "unclip")
        if vae and world and toys[2]:
            _train_text_to_image(params, clip, vae, world, schooling, backbones / "text_to_image")
        elif params.text_to_image.weights != NONE:
            fetch_text_to_image(params.text_to_image, backbones / "text_to_image")
        if params.pixels.weights != NONE:
            fetch_pixels(params.pixels, clip.image_size[0], backbones / "pixels")
        fetch_perceptual(params.perceptual, backbones / FOLDER)


def _train_clip(params: Backbones, clip: Clip, world: World, schooling: Schooling) -> None:
    if params.clip.text == "locked":
        train_words(clip, params.clip, params.words, params.phases["words"], schooling, clip.device)
    texts = clip.tokenize(world.captions).to(clip.device)
    train_clip(clip, world.pixel_values, texts, params.clip, params.phases["clip"], schooling)


def _train_vae(params: Backbones, world: World, schooling: Schooling) -> AutoencoderKL:
    vae = new_vae(params.vae, params.clip.image_px).to(world.images.device)
    train_vae(vae, world.images, params.vae, params.phases["vae"], schooling)
    return vae


def _train_unclip(
    params: Backbones, clip: Clip, vae: AutoencoderKL, world: World, schooling: Schooling, folder: Path
) -> None:
    """A U-Net on the VAE's latents and the CLIP's embeddings."""
    mean, std = measure_statistics(clip, world.pixel_values.split(256), at_most=len(world.pixel_values))
    new_unclip(clip, vae, params.unet, mean, std).save_pretrained(folder, safe_serialization=True)
    params.generator.options.save(folder)
    generator = load_generator(folder, world.images.device)
    latents = torch.cat([generator.encode(part) for part in world.images.split(256)])
    train_unclip(clip, generator, world.pixel_values, latents, params.unet, params.phases["unet"], schooling)
    save_generator(generator, like=folder, folder=folder)


def _train_text_to_image(
    params: Backbones, clip: Clip, vae: AutoencoderKL, world: World, schooling: Schooling, folder: Path
) -> None:
    """A U-Net on the VAE's latents and the hidden states of the captions."""
    pipeline = new_text_to_image(clip, vae, params.unet)
    pipeline.save_pretrained(folder, safe_serialization=True)
    params.text_to_image.options.save(folder)
    decoder = load_text_to_image(folder, world.images.device)
    latents = torch.cat([decoder.encode(part) for part in world.images.split(256)])
    prompt_embeds = embed_captions(pipeline, world.captions).to(decoder.device)
    train_text_to_image(decoder, latents, prompt_embeds, params.unet, params.phases["unet"], schooling)
    save_generator(decoder, like=folder, folder=folder)


def _read(clip: Clip, folder: Path, params: Backbones, device: torch.device) -> World:
    view = generator_view(params.clip.image_px)
    read = list(tqdm(samples(folder), unit="image", desc="read", mininterval=1))
    largest = max(params.clip.batch_size, params.vae.batch_size, params.unet.batch_size)
    if len(read) < largest:
        raise UserError(
            f"{folder} holds {len(read)} samples, fewer than one batch of {largest}; lower backbones' batch sizes"
        )
    return World(
        pixel_values=torch.stack([clip.preprocess(sample.image) for sample in read]).to(device),
        images=torch.stack([view(sample.image) for sample in read]).to(device),
        captions=[sample.caption for sample in read],
    )
