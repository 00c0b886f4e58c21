"""Stage `backbones`: the CLIP to be tuned, and the unCLIP that inverts it.

Of each, what you have or download, verified; or, for a laptop, a tiny one trained here.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import samples
from un2clip.decoders import load_generator, save_generator
from un2clip.decoders.assemble import measure_statistics
from un2clip.decoders.fetching import TOY, GeneratorSource, fetch_generator
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.models.clip import Clip, save_clip
from un2clip.models.converting import Encoder, convert_checkpoint
from un2clip.world.clip import ClipSize, new_clip, train_clip
from un2clip.world.unclip import UnetSize, VaeSize, new_unclip, new_vae, train_unclip, train_vae


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The section `backbones` of params.yaml, which says what each number means."""

    encoder: Encoder
    generator: GeneratorSource
    clip: ClipSize
    vae: VaeSize
    unet: UnetSize


def backbones(params: Backbones, *, seed: int, device: str, images: Path, backbones: Path) -> None:
    """Write the CLIP and its unCLIP: a toy CLIP learns from image-text pairs, a toy unCLIP from their images.

    Args:
        seed: initialisation, order and noise.
        device: auto, cpu or cuda.
        images: train/*.tar of the laptop world; read for toys only.
        backbones: folder that gets clip/ (open_clip) and unclip/ (StableUnCLIPImg2ImgPipeline).
    """
    toy_clip, toy_unclip = params.encoder.weights == TOY, params.generator.weights == TOY
    folder, where = backbones / "clip", pick_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = new_clip(params.clip, folder) if toy_clip else convert_checkpoint(params.encoder, folder)
        clip.model.to(where)
        if toy_clip or toy_unclip:
            pixel_values, pictures, texts = (each.to(where) for each in _read(clip, images / "train", params))
        if toy_clip:
            train_clip(clip, pixel_values, texts, params.clip)
            save_clip(clip, folder)
        if toy_unclip:
            _train_unclip(params, clip, pixel_values, pictures, seed, backbones / "unclip")
        else:
            fetch_generator(params.generator, clip, backbones / "unclip")


def _train_unclip(
    params: Backbones, clip: Clip, pixel_values: Tensor, pictures: Tensor, seed: int, folder: Path
) -> None:
    """A VAE on the images, and a U-Net on its latents and the CLIP's embeddings."""
    where = pixel_values.device
    vae = new_vae(params.vae, params.clip.image_px).to(where)
    train_vae(vae, pictures, params.vae)
    mean, std = measure_statistics(clip, pixel_values.split(256), at_most=len(pixel_values))
    new_unclip(clip, vae, params.unet, mean, std).save_pretrained(folder, safe_serialization=True)
    params.generator.options.save(folder)
    generator = load_generator(folder, where)
    latents = torch.cat([generator.encode(part) for part in pictures.split(256)])
    train_unclip(clip, generator, pixel_values, latents, params.unet, seed)
    save_generator(generator, like=folder, folder=folder)


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
