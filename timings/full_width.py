"""The published generators at full size with random weights, on any device; `meta` allocates nothing."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from un2clip.config import read_yaml
from un2clip.decoders import Unclip

CONFIG = read_yaml(Path(__file__).parent / "sd21_unclip.yaml")


def new_generator(name: str, device: torch.device, image_px: int | None = None, *, smallest: bool = False) -> Unclip:
    """`unclip-l` or `unclip-h`: shapes as published, weights random, frozen; None: its own image_px.

    The smallest has the published one's parts and embedding, and widths that a test can run.
    """
    small = CONFIG["smallest"] if smallest else {"text": {}, "unet": {}, "vae": {}}
    dim, text = CONFIG["embed_dim"][name], CONFIG["text"] | small["text"]
    with torch.device(device):
        unet = UNet2DConditionModel(**CONFIG["unet"] | small["unet"], projection_class_embeddings_input_dim=2 * dim)
        vae = AutoencoderKL(**CONFIG["vae"] | small["vae"])
        prompt_embeds = torch.randn(1, text["tokens"], text["width"])
        return Unclip(
            unet=unet,
            vae=vae,
            scheduler=DDPMScheduler(**CONFIG["scheduler"]),
            image_noising_scheduler=DDPMScheduler(**CONFIG["image_noising_scheduler"]),
            mean=torch.zeros(1, dim),
            std=torch.ones(1, dim),
            prompt_embeds=prompt_embeds,
            empty_prompt_embeds=prompt_embeds,
            normalise=True,
            image_px=image_px,
        )
