"""An unCLIP for any CLIP, untrained: its parts put together, from a text-to-image Stable Diffusion or from toys.

Method row `align` trains it: `finetune --method=align`.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from un2clip.decoders.folder import new_normalizer
from un2clip.decoders.parts import check_json, load_noise_schedule, load_part, named
from un2clip.errors import UserError
from un2clip.models.clip import Clip
from un2clip.models.huggingface import image_processor, to_hugging_face_vision


def assemble(
    clip: Clip,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    mean: Tensor,
    std: Tensor,
) -> StableUnCLIPImg2ImgPipeline:
    """diffusers' pipeline of these parts, for the embeddings of this CLIP.

    Args:
        unet: with class_embed_type "projection" for 2 D numbers.
        scheduler: has the noise schedule of the U-Net's training.
        mean, std: (1, D) statistics of the embedding.
    """
    try:
        image_encoder = to_hugging_face_vision(clip)
    except UserError:  # not a tower that the pipeline can hold; it draws from embeddings that are given
        image_encoder = None
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(clip),
        image_encoder=image_encoder,
        image_normalizer=new_normalizer(mean, std),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),  # as Stable Diffusion 2.1 unCLIP
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=scheduler,
        vae=vae,
    )


def from_text_to_image(folder: Path, clip: Clip) -> StableUnCLIPImg2ImgPipeline:
    """An unCLIP from a directory in StableDiffusionPipeline's layout; the normaliser's statistics are 0 and 1 as yet.

    Raises:
        UserError: a part is missing or damaged, or the U-Net has a class embedding of its own.
    """
    dim = clip.embed_dim
    with named(folder):
        scheduler = DDIMScheduler.from_config(load_noise_schedule(folder, "scheduler").config)
        unet, vae = load_part(UNet2DConditionModel, folder, "unet"), load_part(AutoencoderKL, folder, "vae")
        check_json(folder / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        text_encoder = load_part(CLIPTextModel, folder, "text_encoder")
    add_class_projection(unet, dim)
    return assemble(
        clip,
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        mean=torch.zeros(1, dim),
        std=torch.ones(1, dim),
    )


def add_class_projection(unet: UNet2DConditionModel, embed_dim: int) -> None:
    """Let a text-to-image U-Net read an embedding, in place; it predicts the same as before, bit for bit.

    The projection's output layer starts at zero, as ControlNet's do (arXiv 2302.05543, section 3.1); its gradient does
    not, because the layer before it is random.
    """
    if unet.config.class_embed_type is not None:
        raise UserError(f"the U-Net has a class embedding already ({unet.config.class_embed_type}); align needs none")
    width = unet.time_embedding.linear_2.out_features
    unet.class_embedding = TimestepEmbedding(2 * embed_dim, width)
    nn.init.zeros_(unet.class_embedding.linear_2.weight)
    nn.init.zeros_(unet.class_embedding.linear_2.bias)
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=2 * embed_dim)


def measure_statistics(clip: Clip, batches: Iterable[Tensor], at_most: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (1, D) each, of the embeddings of the first `at_most` images.

    Args:
        batches: pixel_values (B, 3, H, W).
    """
    parts: list[Tensor] = []
    left = at_most
    for pixel_values in batches:
        parts.append(clip.embed(pixel_values[:left]))
        left -= len(parts[-1])
        if left == 0:
            break
    image_embeds = torch.cat(parts)
    if len(image_embeds) < 2:
        raise UserError(f"the embedding's statistics need at least 2 images, got {len(image_embeds)}")
    return image_embeds.mean(0, keepdim=True), image_embeds.std(0, keepdim=True).clamp_min(1e-6)
