"""A tiny text-to-image generator in Stable Diffusion's layout: diffusers' classes, told by the CLIP's text tower."""

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn

from un2clip.datasets.loader import Batch
from un2clip.decoders import Cond, NoiseConfig, NoiseSample
from un2clip.decoders.text_to_image import TextToImage
from un2clip.methods.objective import Objective
from un2clip.models.clip import Clip
from un2clip.models.huggingface import bpe_tokenizer, to_hugging_face
from un2clip.training.config import PhaseConfig
from un2clip.world.training import Schooling, train_toy
from un2clip.world.unclip import UnetSize, new_schedule, new_unet


def new_text_to_image(clip: Clip, vae: AutoencoderKL, size: UnetSize) -> StableDiffusionPipeline:
    """The whole pipeline with an untrained U-Net; its text encoder is the CLIP's."""
    text_encoder = to_hugging_face(clip).text_model
    narrower = ("DownBlock2D",) * (len(size.block_out_channels) - 1)
    unet = new_unet(
        vae,
        size,
        down_block_types=("CrossAttnDownBlock2D", *narrower),
        up_block_types=(*(name.replace("Down", "Up") for name in narrower), "CrossAttnUpBlock2D"),
        cross_attention_dim=text_encoder.config.hidden_size,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=bpe_tokenizer(text_encoder.config.max_position_embeddings),
        unet=unet,
        scheduler=new_schedule(size, steps_offset=1),  # as diffusers wants it of this pipeline
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class Captioned(Objective):
    """The decoder told of each image's own caption: how a text-to-image generator is trained (arXiv 2112.10752)."""

    def __init__(self, decoder: TextToImage) -> None:
        super().__init__()
        self.decoder = decoder

    def parts(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder.network}

    def draw(self, batch: Batch, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        return self.decoder.draw(n, rng, noise)

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        cond = Cond(sequence=batch["prompt_embeds"])
        (loss,) = self.decoder.loss(batch["target"], cond, noise_sample).values()
        return {"loss": loss}


@torch.no_grad()
def embed_captions(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Hidden states (N, L, C) of captions, as the pipeline's own encode_prompt gives them."""
    length = pipeline.tokenizer.model_max_length
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    parts = [captions[i : i + 256] for i in range(0, len(captions), 256)]
    return torch.cat([pipeline.text_encoder(pipeline.tokenizer(part, **options).input_ids)[0] for part in parts])


def train_text_to_image(
    decoder: TextToImage,
    latents: Tensor,
    prompt_embeds: Tensor,
    size: UnetSize,
    phase: PhaseConfig,
    schooling: Schooling,
) -> None:
    """Train the U-Net on the world's images and captions, in place."""
    decoder.check(phase.noise)
    data = {"target": latents, "prompt_embeds": prompt_embeds}
    train_toy("text_to_image", Captioned(decoder), "decoder", phase, data, size.batch_size, schooling)
