"""Stage `backbones`: the CLIP to be tuned, and the unCLIP that inverts it.

Of each, what you have or download, verified; or, for a laptop, a tiny one trained here.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from un2clip.checkpoint import Clip, save_clip
from un2clip.config import UserError
from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import samples
from un2clip.decoder import Options, load_generator, save_generator
from un2clip.decoder.assemble import from_text_to_image, measure_statistics
from un2clip.decoder.folder import TEXT_TO_IMAGE, copy_generator, read_layout
from un2clip.sources import Source, obtain
from un2clip.toy.clip import ClipSize, new_clip, train_clip
from un2clip.toy.unclip import UnetSize, VaeSize, new_unclip, new_vae, train_unclip, train_vae

TOY = "toy"
#: What a generator cannot do without, in the layout of an unCLIP or of text-to-image.
GENERATOR_FILES = (
    "model_index.json", "scheduler/*.json", "tokenizer/*.json", "text_encoder/*.safetensors", "unet/*.safetensors",
    "vae/*.safetensors",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GeneratorSource:
    """The part `backbones.generator`: where the generator comes from, and how every stage uses it.

    Attributes:
        weights: toy, or a Source's location: a directory in StableUnCLIPImg2ImgPipeline's layout, or in
            StableDiffusionPipeline's, from which an untrained unCLIP is assembled.
        revision, sha256: of a hub id.
        prompt, normalise, image_px: see decoder.Options.
    """

    weights: str
    revision: str
    sha256: dict[str, str]
    prompt: str
    normalise: bool
    image_px: int

    def __post_init__(self) -> None:
        if self.weights == TOY and self.image_px != 0:
            raise ValueError(f"image_px must be 0 with toy weights, which draw at clip.image_px; got {self.image_px}")
        assert self.options and self.source  # their own checks

    @property
    def options(self) -> Options:
        return Options(prompt=self.prompt, normalise=self.normalise, image_px=self.image_px)

    @property
    def source(self) -> Source:
        return Source(location=self.weights, revision=self.revision, sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The section `backbones` of params.yaml, which says what each number means."""

    generator: GeneratorSource
    clip: ClipSize
    vae: VaeSize
    unet: UnetSize


def backbones(params: Backbones, *, seed: int, device: str, images: Path, backbones: Path) -> None:
    """Write the CLIP and its unCLIP: a toy CLIP learns from image-text pairs, a toy unCLIP from their images.

    Args:
        seed: initialisation, order and noise.
        device: auto, cpu or cuda.
        images: train/*.tar of the laptop world.
        backbones: folder that gets clip/ (open_clip) and unclip/ (StableUnCLIPImg2ImgPipeline).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = new_clip(params.clip, backbones / "clip")
        pixel_values, pictures, texts = _read(clip, images / "train", params)
        train_clip(clip, pixel_values, texts, params.clip)
        save_clip(clip, backbones / "clip")
        if params.generator.weights == TOY:
            _train_generator(params, clip, pixel_values, pictures, seed, backbones / "unclip")
        else:
            fetch_generator(params.generator, clip, backbones / "unclip")


def fetch_generator(params: GeneratorSource, clip: Clip, folder: Path) -> None:
    """Write the generator that `params` names: a copy of an unCLIP, or one assembled from text-to-image parts.

    Raises:
        UserError: it is absent, not what its hash says, incomplete, or made for embeddings of another width.
    """
    found = obtain(params.source, files=GENERATOR_FILES, name="backbones.generator")
    folder.mkdir(parents=True, exist_ok=True)
    if read_layout(found) == TEXT_TO_IMAGE:
        from_text_to_image(found, clip).save_pretrained(folder, safe_serialization=True)
    else:
        copy_generator(found, folder)
    params.options.save(folder)
    load_generator(folder).check_fits(clip.embed_dim)


def _train_generator(
    params: Backbones, clip: Clip, pixel_values: Tensor, pictures: Tensor, seed: int, folder: Path
) -> None:
    vae = new_vae(params.vae, params.clip.image_px)
    train_vae(vae, pictures, params.vae)
    mean, std = measure_statistics(clip, pixel_values.split(256), at_most=len(pixel_values))
    new_unclip(clip, vae, params.unet, mean, std).save_pretrained(folder, safe_serialization=True)
    params.generator.options.save(folder)
    generator = load_generator(folder)
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
