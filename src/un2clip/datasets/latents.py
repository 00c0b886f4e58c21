"""The latents cache: what the VAE makes of every image, once, in a file of safetensors beside each shard.

Crops are deterministic, so the latents of an image never change and training need not encode it at every step.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from un2clip.config import read_record
from un2clip.datasets.shards import read_index
from un2clip.errors import UserError
from un2clip.hashes import file_sha256_once

INDEX = "latents.json"
MADE_OF = "made_of"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """latents.json: what the folder holds.

    Attributes:
        cached: whether there are files, or latents are encoded as they are needed.
        vae_sha256: hash of the VAE.
        shards: split/shard.tar -> hash of the shard that its latents are of.
        sha256: split/shard.tar -> hash of its file.
        precision: fp32, tf32 or bf16, in which the VAE computed.
        error: of the latents of the first batch against those of fp32: length of the difference over theirs; None in
            fp32.
    """

    cached: bool
    vae_sha256: str
    shards: dict[str, str]
    sha256: dict[str, str]
    precision: str = "fp32"
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class CachedLatents:
    """The latents that stage `latents` wrote, one sample at a time.

    Attributes:
        folder: split/shard.safetensors, each with `latents` (n, C, h, w), scaled, in the shard's order.
        sha256: split/shard.tar -> hash of its file.
    """

    folder: Path
    sha256: dict[str, str]

    def read(self, tar: Path, number: int) -> Tensor:
        """Latents of one sample of a shard, (C, h, w) float32.

        Raises:
            UserError: the file is not the one that was made; it is hashed at its first read in this process.
        """
        path = file_of(self.folder, tar)
        if file_sha256_once(path) != self.sha256[f"{tar.parent.name}/{tar.name}"]:
            raise UserError(f"{path} is not what `un2clip latents` wrote, by its hash; run `un2clip latents` again")
        return _open(path, path.stat().st_mtime_ns).get_slice("latents")[number].float()


def file_of(folder: Path, tar: Path) -> Path:
    """Where the latents of `shards/split/00000.tar` lie: `folder/split/00000.safetensors`."""
    return folder / tar.parent.name / f"{tar.stem}.safetensors"


@functools.lru_cache(maxsize=4)
def _open(path: Path, mtime_ns: int) -> safe_open:
    return safe_open(path, framework="pt")


def made_of(path: Path) -> str:
    """What a file of the cache says it is made of: VAE, shard, dtype; "" where there is none, or it is broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(MADE_OF, ""))
    except (OSError, SafetensorError):
        return ""


def latents_sha256(folder: Path) -> str:
    """One hash of the whole cache: of the VAE that made it, and of every file."""
    cache = read_cache(folder)
    lines = [f"{name} {sha256}\n" for name, sha256 in sorted(cache.sha256.items())]
    return hashlib.sha256("".join([f"{cache.vae_sha256}\n", *lines]).encode()).hexdigest()


def earlier_cache(folder: Path) -> Cache:
    """What an earlier run said of the folder; of one that said nothing that there are no files."""
    try:
        return read_cache(folder)
    except UserError:
        return Cache(cached=False, vae_sha256="", shards={}, sha256={})


def vae_of(folder: Path) -> str:
    """Hash of the VAE that made the cache."""
    return read_cache(folder).vae_sha256


def open_latents(folder: Path, shards: Path, vae_sha256: str) -> CachedLatents | None:
    """The cache, or None where `latents.cache` is false and latents are encoded as they are needed.

    Args:
        vae_sha256: of the VAE that is to have made it, as decoders have it.

    Raises:
        UserError: the cache is of other shards or of another VAE, or a file of it is missing.
    """
    cache = read_cache(folder)
    made_by = cache.vae_sha256
    if not cache.cached:
        return None
    if made_by != vae_sha256:
        raise UserError(f"{folder} was made by VAE {made_by[:12]}, not {vae_sha256[:12]}; run `un2clip latents` again")
    for split, listed in read_index(shards).splits.items():
        for shard in listed:
            name, path = f"{split}/{shard.name}", file_of(folder, shards / split / shard.name)
            if cache.shards.get(name) != shard.sha256 or name not in cache.sha256 or not path.is_file():
                raise UserError(f"{folder} has no latents of {name}; run `un2clip latents` again")
            if made_of(path).split(" ")[:2] != [vae_sha256, shard.sha256]:
                raise UserError(f"{path} is of another VAE or another shard; run `un2clip latents` again")
    return CachedLatents(folder=folder, sha256=cache.sha256)


def read_cache(folder: Path) -> Cache:
    """What `un2clip latents` says of the folder that it wrote.

    Raises:
        UserError: it says nothing, or what it says is broken.
    """
    return read_record(Cache, folder / INDEX, "latents")
