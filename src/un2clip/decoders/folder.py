"""A generator on disk: the directory layout of diffusers' StableUnCLIPImg2ImgPipeline, and un2clip.json beside it."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from un2clip.config import build
from un2clip.decoders.parts import check_json, load_noise_schedule, load_part, named
from un2clip.decoders.text_to_image import TextToImage
from un2clip.decoders.unclip import Unclip
from un2clip.errors import UserError, cause
from un2clip.files.outputs import permit
from un2clip.files.texts import read_json

disable_progress_bar()  # a bar for the tensors of one small text encoder, in every stage

CPU = torch.device("cpu")
INDEX = "model_index.json"
OPTIONS = "un2clip.json"
#: The subfolders of both layouts that are used, and the kinds of file in them that are opened.
PARTS = (
    "feature_extractor", "image_encoder", "image_noising_scheduler", "image_normalizer", "scheduler", "text_encoder",
    "tokenizer", "unet", "vae",
)  # fmt: skip
OPENED = (".json", ".txt", ".safetensors")
UNCLIP, TEXT_TO_IMAGE = "StableUnCLIPImg2ImgPipeline", "StableDiffusionPipeline"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a generator is used, the same in every stage that loads it; the paper leaves all three open.

    Attributes:
        prompt: text condition.
        normalise: whether the embedding is normalised by the generator's statistics before its noise is added.
        image_px: side of the images that it draws; 0 is its own (768 for SD-2.1 unCLIP).
    """

    prompt: str
    normalise: bool
    image_px: int

    def __post_init__(self) -> None:
        if self.image_px < 0:
            raise ValueError(f"image_px must be 0 (the generator's own) or a positive number, got {self.image_px}")

    def save(self, folder: Path) -> None:
        """Write them beside the weights."""
        (folder / OPTIONS).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def of(cls, folder: Path) -> "Options":
        """Those of a directory; one that nobody wrote options for is used as diffusers' pipeline uses it."""
        if not (folder / OPTIONS).is_file():
            return cls(prompt="", normalise=True, image_px=0)
        return build(cls, read_json(folder / OPTIONS), str(folder / OPTIONS))


def read_layout(folder: Path) -> str:
    """The pipeline class that a directory is laid out for.

    Raises:
        UserError: it is no pipeline of diffusers', or one that this project has no use for.
    """
    try:
        found = read_json(folder / INDEX)["_class_name"]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a generator in {UNCLIP}'s layout: it has no readable {INDEX} ({cause(error)})"
        ) from None
    if found not in (UNCLIP, TEXT_TO_IMAGE):
        raise UserError(
            f"{folder} is laid out for {cause(repr(found))}; a generator is a {UNCLIP}, or a {TEXT_TO_IMAGE} to align"
        )
    return str(found)


def load_generator(folder: Path, device: torch.device = CPU) -> Unclip:
    """Load an unCLIP, frozen, in float32, from safetensors only.

    Raises:
        UserError: a part is missing or damaged, or the parts do not fit each other.
    """
    if read_layout(folder) != UNCLIP:
        raise UserError(
            f"{folder} is text-to-image and reads no embedding; name it in backbones.generator.weights, "
            "where an unCLIP is assembled from it, and train that by `finetune --method=align`"
        )
    options = Options.of(folder)
    with named(folder):
        normalizer = load_part(StableUnCLIPImageNormalizer, folder, "image_normalizer")
        if not (normalizer.std > 0).all():
            raise UserError("a deviation of image_normalizer/ is not positive")
        generator = Unclip(
            **_parts(folder, options),
            image_noising_scheduler=load_noise_schedule(folder, "image_noising_scheduler"),
            mean=normalizer.mean,
            std=normalizer.std,
            normalise=options.normalise,
        )
    return generator.to(device)


def load_text_to_image(folder: Path, device: torch.device = CPU) -> TextToImage:
    """Load a directory in StableDiffusionPipeline's layout, frozen, in float32, from safetensors only.

    Raises:
        UserError: a part is missing or damaged, or the parts do not fit each other.
    """
    if read_layout(folder) != TEXT_TO_IMAGE:
        raise UserError(f"{folder} is an unCLIP, which reads an embedding; a {TEXT_TO_IMAGE} is needed here")
    with named(folder):
        generator = TextToImage(**_parts(folder, Options.of(folder)))
    return generator.to(device)


def _parts(folder: Path, options: Options) -> dict[str, Any]:
    """What every Diffusion is made of."""
    prompt_embeds, empty_prompt_embeds = _embed_prompts(folder, options.prompt, "")
    return {
        "unet": load_part(UNet2DConditionModel, folder, "unet"),
        "vae": load_part(AutoencoderKL, folder, "vae"),
        "scheduler": load_noise_schedule(folder, "scheduler"),
        "prompt_embeds": prompt_embeds,
        "empty_prompt_embeds": empty_prompt_embeds,
        "image_px": options.image_px or None,
    }


@torch.no_grad()
def _embed_prompts(folder: Path, *prompts: str) -> list[Tensor]:
    """Hidden states (1, L, C) of each prompt, as StableUnCLIPImg2ImgPipeline.encode_prompt gives them."""
    check_json(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = load_part(CLIPTextModel, folder, "text_encoder").eval()
    if tokenizer.model_max_length > text_encoder.config.max_position_embeddings:  # transformers makes up a missing one
        raise UserError("tokenizer/ is missing, damaged, or another text encoder's")
    embeds = []
    for prompt in prompts:
        tokens = tokenizer(
            prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask if getattr(text_encoder.config, "use_attention_mask", False) else None
        embeds.append(text_encoder(tokens.input_ids, attention_mask=mask)[0])
    return embeds


def copy_generator(source: Path, folder: Path) -> None:
    """Copy a directory without what nobody opens: other formats, and half-precision twins of the weights."""

    def unopened(inside: str, names: list[str]) -> list[str]:
        return [name for name in names if not name.endswith(OPENED) or ".fp16." in name]

    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(
                source / part, folder / part, ignore=unopened, copy_function=shutil.copyfile, dirs_exist_ok=True
            )
    shutil.copyfile(source / INDEX, folder / INDEX)


def save_generator(generator: Unclip | TextToImage, like: Path, folder: Path) -> None:
    """Write a trained generator: the directory `like` (which may be `folder` itself), with this U-Net and statistics.

    Both are written in the dtype that they are held in. A compiled or channels_last U-Net is written like any other.
    """
    if folder != like:
        shutil.copytree(like, folder, dirs_exist_ok=True)
    generator.unet.register_to_config(_name_or_path="")  # diffusers would write where it was loaded from
    generator.unet.save_pretrained(folder / "unet", safe_serialization=True)
    if isinstance(generator, Unclip):
        save_statistics(generator.mean, generator.std, folder)
    permit(folder)


def save_statistics(mean: Tensor, std: Tensor, folder: Path) -> None:
    """Write the normaliser's statistics, both (1, D), in the pipeline's own class."""
    new_normalizer(mean, std).save_pretrained(folder / "image_normalizer", safe_serialization=True)
    permit(folder / "image_normalizer")


def new_normalizer(mean: Tensor, std: Tensor) -> StableUnCLIPImageNormalizer:
    """diffusers' normaliser with these statistics, both (1, D)."""
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=mean.shape[-1])
    normalizer.mean.data.copy_(mean)
    normalizer.std.data.copy_(std)
    return normalizer
