"""Drawing images: what StableUnCLIPImg2ImgPipeline's own call does, from embeddings that are given."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from un2clip.decoders.unclip import Generator


@torch.no_grad()
def sample(
    generator: Generator,
    image_embeds: Tensor,
    rng: torch.Generator,
    *,
    sampling_steps: int,
    guidance_scale: float,
    noise_level: int,
) -> Tensor:
    """Draw one image an embedding (B, D) -> (B, 3, S, S) float32 in [-1, 1], by DDIM (arXiv 2010.02502).

    With a DDIM sampler the pipeline gives the same images for the same `rng`: it draws the embedding's noise and
    then the latents, and both branches go through the U-Net as one batch. The unconditional branch has the empty
    prompt, and class labels of zero, embedding and level.

    Args:
        rng: on the CPU, so that a GPU meets the same numbers.
        guidance_scale: of classifier-free guidance (arXiv 2207.12598); 1 is none.
        noise_level: of the embedding's noise augmentation.
    """
    n, device = len(image_embeds), image_embeds.device
    noise = torch.randn(image_embeds.shape, generator=rng).to(device)
    latents = torch.randn((n, *generator.latents_shape), generator=rng).to(device)
    labels = generator.class_labels(image_embeds, torch.full((n,), noise_level, device=device), noise)
    prompt = generator.prompt_embeds.expand(n, -1, -1)
    if guided := guidance_scale > 1:
        labels = torch.cat([torch.zeros_like(labels), labels])
        prompt = torch.cat([generator.empty_prompt_embeds.expand(n, -1, -1), prompt])
    scheduler = DDIMScheduler.from_config(generator.scheduler.config)
    scheduler.set_timesteps(sampling_steps)
    for timestep in tqdm(scheduler.timesteps, unit="step", desc="draw", mininterval=1):
        inputs = torch.cat([latents, latents]) if guided else latents
        prediction = generator(inputs, timestep.to(device).expand(len(inputs)), labels, prompt)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return generator.decode(latents)
