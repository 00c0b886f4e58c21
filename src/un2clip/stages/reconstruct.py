"""Stage `reconstruct`: pictures.

The original, and what the generator draws from each encoder's embedding, starting from the same noise.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from un2clip.checkpoint import load_clip
from un2clip.config import at_least_one
from un2clip.datasets import loader
from un2clip.decoder import Generator, load_generator
from un2clip.devices import pick_device


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """The section `reconstruct` of params.yaml."""

    images: int
    sampling_steps: int
    guidance_scale: float
    noise_level: int

    def __post_init__(self) -> None:
        at_least_one(self, "images", "sampling_steps")


def reconstruct(
    params: Reconstruct, *, seed: int, device: str, shards: Path, backbones: Path, encoder: Path, reconstructions: Path
) -> None:
    """Draw held-out images from both encoders' embeddings and write grid.png.

    Args:
        seed: of the starting noise, the same for both encoders.
        device: auto, cpu or cuda.
        shards: the first `images` of its heldout/.
        backbones: clip/ is the reference; unclip/ draws.
        encoder: the tuned checkpoint.
        reconstructions: folder that gets grid.png.
    """
    where = pick_device(device)
    generator = load_generator(backbones / "unclip", where)
    reference, tuned = load_clip(backbones / "clip", where), load_clip(encoder, where)
    n = min(params.images, loader.count(shards, "heldout", at_least=1))
    batch = next(
        loader.epoch(shards, "heldout", reference.preprocess, loader.generator_view(generator.image_px), n, seed=None)
    )
    rows = {"original": batch.images, "the VAE alone": generator.decode(generator.encode(batch.images))}
    for name, clip in (("reference", reference), ("tuned", tuned)):
        rows[name] = sample(generator, clip.embed(batch.pixel_values), params, seed)
    reconstructions.mkdir(parents=True, exist_ok=True)
    _save_grid(rows, reconstructions / "grid.png")


@torch.no_grad()
def sample(generator: Generator, image_embeds: Tensor, params: Reconstruct, seed: int) -> Tensor:
    """Draw one image an embedding (B, D) -> (B, 3, S, S) in [-1, 1], by DDIM with classifier-free guidance.

    The unconditional branch's class labels are zero, embedding and level, as in the pipeline.
    """
    rng = torch.Generator().manual_seed(seed)
    n, size = len(image_embeds), int(generator.unet.config.sample_size)
    device = image_embeds.device
    latents = torch.randn((n, generator.unet.config.in_channels, size, size), generator=rng).to(device)
    noise = torch.randn((n, generator.embed_dim), generator=rng).to(device)
    labels = generator.class_labels(image_embeds, torch.full((n,), params.noise_level, device=device), noise)
    scheduler = DDIMScheduler.from_config(generator.scheduler.config)
    scheduler.set_timesteps(params.sampling_steps)
    for timestep in tqdm(scheduler.timesteps, unit="step", desc="reconstruct", mininterval=1):
        timesteps = timestep.to(device).expand(n)
        conditional = generator(latents, timesteps, labels)
        unconditional = generator(latents, timesteps, torch.zeros_like(labels))
        prediction = unconditional + params.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return generator.decode(latents)


def _save_grid(rows: dict[str, Tensor], path: Path) -> None:
    """One row a source, one column an image, on a white sheet."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.0 + 0.9 * columns, 1.0 * len(rows)), layout="constrained")
    for axes_row, (name, images) in zip(figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow((image.permute(1, 2, 0).clamp(-1, 1) + 1).cpu().numpy() / 2, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=110, metadata={"Software": None})
