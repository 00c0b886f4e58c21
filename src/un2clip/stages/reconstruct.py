"""Stage `reconstruct`: pictures.

The original, and what the generator draws from each encoder's embedding, starting from the same noise. Below each
picture of the laptop world: what the tuned encoder says of it otherwise than the reference. Where there is no unCLIP:
what the decoder that the fine-tuning left draws of each encoder's patches.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.random_access import metadata_of
from un2clip.decoders import Cond, load_generator
from un2clip.devices import pick_device
from un2clip.evaluation.autoencoding import open_autoencoder
from un2clip.evidence.scores import Role
from un2clip.models.clip import Clip, load_clip
from un2clip.world.naming import changes, say, scene_of


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
        backbones: clip/ is the reference; unclip/ draws, where there is one.
        encoder: the tuned checkpoint.
        reconstructions: folder that gets grid.png.
    """
    where = pick_device(device)
    reference, tuned = load_clip(backbones / "clip", where), load_clip(encoder, where)
    reconstructions.mkdir(parents=True, exist_ok=True)
    if not (backbones / "unclip").is_dir():
        rows, title = _own(params, shards, {"reference": reference, "tuned": tuned}, encoder)
        _save_grid(rows, [[]] * len(rows["original"]), title, reconstructions / "grid.png")
        return
    generator = load_generator(backbones / "unclip", where)
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
    said = _changes(shards, batch["pixel_values"], reference, tuned)
    title = f"drawn at noise level {params.noise_level} of the embedding, guidance {params.guidance_scale:g}"
    _save_grid(rows, said, title, reconstructions / "grid.png")


def _own(params: Reconstruct, shards: Path, clips: dict[Role, Clip], encoder: Path) -> tuple[dict[str, Tensor], str]:
    """Held-out images, and what is drawn of them by what the fine-tuning left beside the encoder; and a title."""
    models = {role: open_autoencoder(clip, role, encoder) for role, clip in clips.items()}
    first = models["tuned"]
    n = min(params.images, loader.count(shards, "heldout", at_least=1))
    view = loader.generator_view(first.own_px)
    reader = loader.open_split(shards, "heldout", view, view)
    batch = next(loader.strict(loader.read(reader, loader.batched(loader.in_order(reader.sizes), n), workers=0)))
    images = loader.to_device({"images": (batch["images"] + 1) / 2}, first.decoder.device)["images"]
    rows = {"original": images} | {role: model.reconstruct(images, batch["keys"]) for role, model in models.items()}
    return {name: 2 * row - 1 for name, row in rows.items()}, f"drawn of the patches; {first.through}"


def _changes(shards: Path, pixel_values: Tensor, reference: Clip, tuned: Clip) -> list[list[str]]:
    """For each image the lines below it; none where the images are not of the laptop world."""
    found = islice(metadata_of(shards, "heldout"), len(pixel_values))
    scenes = [scene for each in found if (scene := scene_of(each)) is not None]
    if len(scenes) < len(pixel_values):
        return [[]] * len(pixel_values)
    before, after = (say(clip, pixel_values, scenes) for clip in (reference, tuned))
    return [changes(*each) for each in zip(before, after, scenes, strict=True)]


def _save_grid(rows: dict[str, Tensor], said: list[list[str]], title: str, path: Path) -> None:
    """One row a source, one column an image, on a white sheet; below each column what is said otherwise now."""
    columns = len(next(iter(rows.values())))
    height = len(rows) + 0.13 * max(map(len, said)) + 0.3
    figure = Figure(figsize=(1.0 + 0.95 * columns, height), layout="constrained")
    figure.suptitle(title, fontsize=8)
    for axes_row, (name, images) in zip(figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow((image.permute(1, 2, 0).clamp(-1, 1) + 1).cpu().numpy() / 2, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, lines in zip(axes_row, said, strict=True):
        axes.set_xlabel("\n".join(lines), fontsize=6)
    if any(said):
        figure.supxlabel("what the tuned encoder says otherwise than the reference (✓: rightly)", fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
