"""Stage `backbones`: on a laptop, what you would otherwise download: a tiny CLIP, and the unCLIP that inverts it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from un2clip.checkpoint import Clip, save_clip
from un2clip.config import UserError
from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import samples
from un2clip.decoder import load_generator, save_generator
from un2clip.encoder import Encoder, import_clip
from un2clip.toy.clip import ClipSize, new_clip, train_clip
from un2clip.toy.unclip import UnetSize, VaeSize, new_unclip, new_vae, train_unclip, train_vae


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The section `backbones` of params.yaml, which says what each number means."""

    encoder: Encoder
    clip: ClipSize
    vae: VaeSize
    unet: UnetSize


def backbones(params: Backbones, *, seed: int, device: str, images: Path, backbones: Path) -> None:
    """Train a CLIP on image-text pairs, a VAE on the images, and an unCLIP on both.

    Args:
        seed: initialisation, order and noise.
        device: auto, cpu or cuda.
        images: train/*.tar of the laptop world.
        backbones: folder that gets clip/ (open_clip) and unclip/ (StableUnCLIPImg2ImgPipeline).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = params.encoder.weights == "toy"
        clip = new_clip(params.clip, backbones / "clip") if toy else import_clip(params.encoder, backbones / "clip")
        pixel_values, pictures, texts = _read(clip, images / "train", params)
        if toy:
            train_clip(clip, pixel_values, texts, params.clip)
            save_clip(clip, backbones / "clip")
        vae = new_vae(params.vae, params.clip.image_px)
        train_vae(vae, pictures, params.vae)
        image_embeds = torch.cat([clip.embed(part) for part in pixel_values.split(256)])
        unclip = new_unclip(clip, vae, params.unet, image_embeds)
        unclip.save_pretrained(backbones / "unclip", safe_serialization=True)
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
