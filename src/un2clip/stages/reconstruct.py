"""Stage `reconstruct`: pictures.

The original, and what the generator draws from each encoder's embedding, starting from the same noise.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.decoders import Cond, load_generator
from un2clip.devices import pick_device
from un2clip.models.clip import load_clip


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """The section `reconstruct` of params.yaml."""

    images: int
    sampling_steps: int
    guidance_scale: float
    noise_level: int

    def __post_init__(self) -> None:
        at_least(self, 1, "images", "sampling_steps")
        at_least(self, 0, "noise_level")


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
    reader = loader.open_split(shards, "heldout", reference.preprocess, loader.generator_view(generator.image_px))
    batch = next(loader.strict(loader.read(reader, loader.batched(loader.in_order(reader.sizes), n), workers=0)))
    rows = {"original": batch["images"], "the VAE alone": generator.decode(generator.target(batch))}
    for name, clip in (("reference", reference), ("tuned", tuned)):
        rows[name] = generator.sample(
            Cond(vector=clip.embed(batch["pixel_values"])),
            torch.Generator().manual_seed(seed),
            sampling_steps=params.sampling_steps,
            guidance_scale=params.guidance_scale,
            noise_level=params.noise_level,
        )
    reconstructions.mkdir(parents=True, exist_ok=True)
    _save_grid(rows, reconstructions / "grid.png")


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
