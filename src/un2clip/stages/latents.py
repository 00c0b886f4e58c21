"""Stage `latents`: encode every image by the VAE once, so that training and validation need not do it again."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.engine import Engine, at_once, run_tasks
from un2clip.datasets.latents import INDEX, MADE_OF, file_of, kept_sha256, made_of
from un2clip.datasets.shards import read_index
from un2clip.decoders import Unclip, load_generator
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
        workers: processes that read images, beside each process that encodes; 0 for none.
        processes: that encode, a shard at a time; 0 for as many as GPUs are visible, or one.
        engine: who runs them.
    """

    cache: bool
    dtype: Literal["float32", "float16", "bfloat16"]
    batch_size: int
    workers: int
    processes: int
    engine: Engine

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "workers", "processes")


def latents(params: Latents, *, device: str, shards: Path, backbones: Path, latents: Path) -> None:
    """Write split/00000.safetensors beside every shard, and latents.json. A file that is there and fits is kept.

    Args:
        device: auto, cpu or cuda.
        shards: checked images, which may be of a bucket.
        backbones: its unclip/ has the VAE; without one there is nothing to encode for.
        latents: folder of the cache; without `cache` it gets latents.json alone.

    Raises:
        UserError: a sample cannot be read.
    """
    if not (backbones / "unclip").is_dir():
        write_json(latents / INDEX, {"cached": False, "vae_sha256": "", "shards": {}, "sha256": {}})
        print("latents: there is no unCLIP, so no latents either")
        return
    _generator.cache_clear()  # another may lie in the same folder by now
    processes = at_once(params.processes, params.engine, device)
    key, index = _generator(backbones, "cpu" if processes > 1 else device).vae_sha256(), read_index(shards)
    earlier, parts = kept_sha256(latents), dict[str, Part]()
    for split, listed in index.splits.items() if params.cache else ():
        for number, shard in enumerate(listed):
            path, name = file_of(latents, shards / split / shard.name), f"{split}/{shard.name}"
            what = f"{key} {shard.sha256} {params.dtype}"  # one text: safetensors writes several in any order
            parts[name] = Part(
                params=params, device=device, shards=shards, backbones=backbones, split=split, number=number, path=path,
                made_of=what,
            )  # fmt: skip
    made = {name for name, part in parts.items() if made_of(part.path) == part.made_of}
    made = {name for name in made if file_sha256_once(parts[name].path) == earlier.get(name)}
    content: dict[str, Any] = {"cached": params.cache, "vae_sha256": key}

    def write_index() -> None:
        """In the shards' order, whatever the order in which they were made."""
        done = [name for name in parts if name in made]
        content["shards"] = {name: parts[name].made_of.split(" ")[1] for name in done}
        content["sha256"] = {name: file_sha256_once(parts[name].path) for name in done}
        write_json(latents / INDEX, content)

    missing = [part for name, part in parts.items() if name not in made]
    with tqdm(total=len(parts), initial=len(made), unit="shard", desc="latents", mininterval=1) as progress:
        for part in run_tasks(encode, missing, processes, params.engine, device):
            made.add(str(part))
            write_index()  # after each: a run that is cut off keeps what it made
            progress.update()
    kept = {part.path for part in parts.values()}
    for path in [*latents.glob("*/*.safetensors"), *latents.glob("*/*.partial")]:
        if path not in kept:
            path.unlink()  # of a shard that is no more, or of a run that was cut off
    write_index()
    _generator.cache_clear()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One shard to be encoded, as it is handed to a worker; its text is split/shard.tar.

    Attributes:
        number: of the shard in its split.
        path: of the file of latents.
        made_of: what the file says of itself.
    """

    params: Latents
    device: str
    shards: Path
    backbones: Path
    split: str
    number: int
    path: Path
    made_of: str

    def __str__(self) -> str:
        return f"{self.split}/{self.path.stem}.tar"


def encode(part: Part) -> None:
    """Encode a shard; the file is there whole or not at all, also where the disk is full."""
    generator, params = _generator(part.backbones, part.device), part.params
    reader = loader.open_split(part.shards, part.split, _no_view, loader.generator_view(generator.image_px))
    samples = (loader.SampleIndex(part.number, i) for i in range(reader.sizes[part.number]))
    batches = loader.strict(loader.read(reader, loader.batched(samples, params.batch_size), params.workers))
    encoded = torch.cat([generator.target(batch).cpu() for batch in batches]).to(getattr(torch, params.dtype))
    part.path.parent.mkdir(parents=True, exist_ok=True)
    partial = part.path.with_suffix(".partial")
    with disks_in_words([part.path.parent], encoded.numel() * encoded.element_size()):
        try:
            save_tensors({"latents": encoded}, partial, {MADE_OF: part.made_of})
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk is not kept full by half a file
            raise
    partial.replace(part.path)


@functools.lru_cache(maxsize=1)
def _generator(backbones: Path, device: str) -> Unclip:
    """Read once a process."""
    return load_generator(backbones / "unclip", pick_device(device))


def _no_view(image: Image.Image) -> Tensor:
    """What the encoder would see is not wanted here."""
    return torch.empty(0)
