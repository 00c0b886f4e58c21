"""The networks of any overlay at full size, untrained, on torch's default device; `meta` allocates nothing.

A generator that is not on this machine has the shape of Stable Diffusion 2.1's, which every public unCLIP has and every
one that `align` makes; an autoencoder of pixels that of DC-AE-f32c32, SANA's and UniLIP's.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from un2clip.config import read_yaml
from un2clip.decoders import Decoder, Unclip
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.decoders.fetching import NONE, TOY, GeneratorSource
from un2clip.decoders.flow import Flow
from un2clip.decoders.folder import TEXT_TO_IMAGE, read_layout
from un2clip.decoders.perceptual import Perceptual
from un2clip.decoders.pixels import Pixels
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError
from un2clip.files.texts import read_json
from un2clip.methods.building import new_objective
from un2clip.methods.objective import Reconstruction
from un2clip.methods.table import Method
from un2clip.models.clip import CONFIG as CLIP_CONFIG
from un2clip.models.clip import Clip
from un2clip.models.converting import Encoder, architecture_config, new_model
from un2clip.models.internvl import KNOWN, clip_config, internvl_config, new_textless
from un2clip.stages.backbones import Backbones
from un2clip.stages.finetune_job import Finetune

SD21 = Path(str(files(__package__).joinpath("sd21_unclip.yaml")))
CONFIG = read_yaml(SD21)
DC_AE = Path(str(files(__package__).joinpath("dc_ae.yaml")))


def new_reconstruction(backbones: Backbones, finetune: Finetune, row: Method) -> tuple[Reconstruction, tuple[int, int]]:
    """The objective of a row between an overlay's encoder and generator; height and width of the encoder's images.

    Raises:
        UserError: the encoder's or generator's shape is not known before it was trained or fetched; they do not fit.
    """
    clip = new_clip(backbones.encoder)
    decoder = new_decoder(row.decoder, backbones, finetune, clip)
    # a bank's texts are not known yet; its product is too small to matter
    banks = {name: torch.zeros(finetune.captions, clip.embed_dim) for name in row.banks}
    objective = new_objective(
        row, clip, decoder, finetune.anchors, banks=banks, seed=0, conditions=finetune.conditions,
        contrast=finetune.contrast, refers=finetune.compute.refer_every > 0,
    )  # fmt: skip
    return objective, clip.image_size


def new_clip(encoder: Encoder) -> Clip:
    """A CLIP of the encoder's architecture; it embeds, and neither reads pictures nor texts.

    Raises:
        UserError: nothing here says its architecture.
    """
    folder = Path(encoder.source.location)
    if encoder.architecture in KNOWN:
        config = clip_config(internvl_config(encoder.architecture))
        model: Any = new_textless(config)
        return Clip(model=model.eval(), preprocess=_no_view, tokenize=_no_tokens, config=config)
    if encoder.architecture:
        config = architecture_config(encoder.architecture)
    elif (folder / CLIP_CONFIG).is_file():
        config = read_json(folder / CLIP_CONFIG)
    else:
        raise UserError(
            f"nothing says the architecture of backbones.encoder.weights ({encoder.weights}); set "
            "backbones.encoder.architecture, or name a folder that is here"
        )
    return Clip(model=new_model(config["model_cfg"]).eval(), preprocess=_no_view, tokenize=_no_tokens, config=config)


def new_decoder(kind: str, backbones: Backbones, finetune: Finetune, clip: Clip) -> Decoder:
    """The decoder of a method, of KINDS, as `open_decoder` has it, but for the weights.

    Raises:
        UserError: it is to be trained in the pipeline, or none is named.
    """
    if kind == "pixels":
        return _new_pixels(backbones, finetune, clip.image_size[0])
    text = kind == "text_to_image"
    decoder = _new_generator(backbones.text_to_image if text else backbones.generator, kind, clip.embed_dim)
    if kind == "flow":
        assert isinstance(decoder, LatentDecoder)
        return Flow.scratch(decoder.vae, decoder.image_px, finetune.scratch.flow)
    return decoder


def _new_pixels(backbones: Backbones, finetune: Finetune, image_px: int) -> Pixels:
    """A pixel decoder, and the perceptual networks that the overlay names beside it."""
    folder = Path(backbones.pixels.source.location)
    if backbones.pixels.weights == NONE:
        pixels = Pixels.scratch(image_px, finetune.scratch.pixels)
    elif folder.is_dir():
        pixels = Pixels(AutoencoderDC.from_config(AutoencoderDC.load_config(folder)), image_px)
    else:
        pixels = Pixels(AutoencoderDC(**read_yaml(DC_AE)), image_px)
    seen = {name: weight for name, weight in vars(finetune.perceptual).items() if getattr(backbones.perceptual, name)}
    pixels.perceptual = Perceptual(seen) if seen else None
    return pixels


def _new_generator(source: GeneratorSource, kind: str, embed_dim: int) -> Decoder:
    if source.weights in (TOY, NONE):
        name = "text_to_image" if kind == "text_to_image" else "generator"
        raise UserError(
            f"backbones.{name}.weights is {source.weights}, whose cost is that of making it; name the generator that "
            "will be used"
        )
    folder, px = Path(source.source.location), source.image_px or None
    text = kind == "text_to_image"
    if not folder.is_dir():
        return new_text_to_image(px) if text else new_generator(embed_dim, px)
    if not text and read_layout(folder) == TEXT_TO_IMAGE:  # an unCLIP is assembled from it
        return new_generator(embed_dim, px)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
    length = int(read_json(folder / "text_encoder/config.json")["max_position_embeddings"])
    return _unite(unet, vae, embed_dim=None if text else embed_dim, tokens=length, image_px=px)


def new_generator(embed_dim: int, image_px: int | None = None, *, size: str = "") -> Unclip:
    """An unCLIP of SD-2.1's shape for embeddings of this width: 768 is unclip-l, 1024 unclip-h. None: its own image_px.

    Args:
        size: half, or smallest, which a test can run: the published one's parts and embedding in other widths.
    """
    small = CONFIG[size] if size else {"text": {}, "unet": {}, "vae": {}}
    of_embedding = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * embed_dim}
    unet = UNet2DConditionModel(**CONFIG["unet"] | small["unet"] | of_embedding)
    vae = AutoencoderKL(**CONFIG["vae"] | small["vae"])
    tokens = int((CONFIG["text"] | small["text"])["tokens"])
    unclip = _unite(unet, vae, embed_dim=embed_dim, tokens=tokens, image_px=image_px)
    assert isinstance(unclip, Unclip)
    return unclip


def new_text_to_image(image_px: int | None = None) -> TextToImage:
    """Stable Diffusion 2.1 base: the same U-Net without an embedding, at 512 px."""
    unet = UNet2DConditionModel(**CONFIG["unet"] | {"sample_size": CONFIG["text_to_image"]["sample_size"]})
    vae = AutoencoderKL(**CONFIG["vae"])
    found = _unite(unet, vae, embed_dim=None, tokens=CONFIG["text"]["tokens"], image_px=image_px)
    assert isinstance(found, TextToImage)
    return found


def _unite(
    unet: UNet2DConditionModel, vae: AutoencoderKL, *, embed_dim: int | None, tokens: int, image_px: int | None
) -> Unclip | TextToImage:
    prompt_embeds = torch.randn(1, tokens, unet.config.cross_attention_dim)
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": vae,
        "scheduler": DDPMScheduler(**CONFIG["scheduler"]),
        "prompt_embeds": prompt_embeds,
        "empty_prompt_embeds": prompt_embeds,
        "image_px": image_px,
    }
    if embed_dim is None:
        return TextToImage(**parts)
    return Unclip(
        image_noising_scheduler=DDPMScheduler(**CONFIG["image_noising_scheduler"]),
        mean=torch.zeros(1, embed_dim),
        std=torch.ones(1, embed_dim),
        normalise=True,
        **parts,
    )


def _no_view(image: Image.Image) -> Tensor:
    raise NotImplementedError("this model has no weights")


def _no_tokens(texts: list[str]) -> Tensor:
    raise NotImplementedError("this model has no weights")
