"""Stage `latents`: encode every image by the VAE once, so that training and validation need not do it again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.latents import INDEX, MADE_OF, file_of, kept_sha256, made_of
from un2clip.datasets.shards import read_index
from un2clip.decoders import load_generator
from un2clip.devices import pick_device
from un2clip.errors import disks_in_words
from un2clip.files.outputs import save_tensors, write_json
from un2clip.hashes import file_sha256_once


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The section `latents` of params.yaml.

    Attributes:
        cache: whether to encode here; otherwise latents are encoded whenever they are needed.
        dtype: of the files.
        batch_size: images encoded at once.
        workers: processes that read images; 0 for none beside this one.
    """

    cache: bool
    dtype: Literal["float32", "float16", "bfloat16"]
    batch_size: int
    workers: int

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "workers")


def latents(params: Latents, *, device: str, shards: Path, backbones: Path, latents: Path) -> None:
    """Write split/00000.safetensors beside every shard, and latents.json. A file that is there and fits is kept.

    Args:
        device: auto, cpu or cuda.
        shards: checked images.
        backbones: its unclip/ has the VAE.
        latents: folder of the cache; without `cache` it gets latents.json alone.

    Raises:
        UserError: a sample cannot be read.
    """
    generator = load_generator(backbones / "unclip", pick_device(device))
    key, index = generator.vae_sha256(), read_index(shards)
    earlier, kept = kept_sha256(latents), set[Path]()
    content: dict[str, Any] = {"cached": params.cache, "vae_sha256": key, "shards": {}, "sha256": {}}
    for split, listed in index.splits.items() if params.cache else ():
        reader = loader.open_split(shards, split, _no_view, loader.generator_view(generator.image_px))
        for number, shard in enumerate(tqdm(listed, unit="shard", desc=f"latents {split}", mininterval=1)):
            path, name = file_of(latents, reader.folder / shard.name), f"{split}/{shard.name}"
            what = f"{key} {shard.sha256} {params.dtype}"  # one text: safetensors writes several in any order
            if made_of(path) != what or file_sha256_once(path) != earlier.get(name):
                samples = (loader.SampleIndex(number, i) for i in range(shard.samples))
                indices = loader.batched(samples, params.batch_size)
                batches = loader.strict(loader.read(reader, indices, params.workers))
                encoded = torch.cat([generator.target(batch).cpu() for batch in batches])
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                encoded = encoded.to(getattr(torch, params.dtype))
                with disks_in_words([path.parent], encoded.numel() * encoded.element_size()):
                    save_tensors({"latents": encoded}, partial, {MADE_OF: what})
                partial.replace(path)
            kept.add(path)
            content["shards"][name], content["sha256"][name] = shard.sha256, file_sha256_once(path)
            write_json(latents / INDEX, content)  # after each: a run that is cut off keeps what it made
    for path in [*latents.glob("*/*.safetensors"), *latents.glob("*/*.partial")]:
        if path not in kept:
            path.unlink()  # of a shard that is no more, or of a run that was cut off
    write_json(latents / INDEX, content)


def _no_view(image: Image.Image) -> Tensor:
    """What the encoder would see is not wanted here."""
    return torch.empty(0)
