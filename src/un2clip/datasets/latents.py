"""The latents cache: what the VAE makes of every image, once, in a file of safetensors beside each shard.

Crops are deterministic, so the latents of an image never change and training need not encode it at every step.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from un2clip.datasets.shards import read_index
from un2clip.errors import UserError
from un2clip.hashes import file_sha256_once

INDEX = "latents.json"
MADE_OF = "made_of"


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
    index = _index(folder)
    lines = [f"{name} {sha256}\n" for name, sha256 in sorted(index["sha256"].items())]
    return hashlib.sha256("".join([f"{index['vae_sha256']}\n", *lines]).encode()).hexdigest()


def kept_sha256(folder: Path) -> dict[str, str]:
    """split/shard.tar -> hash of each file that an earlier run made; nothing where it left no list of them."""
    try:
        return dict(_index(folder)["sha256"])
    except UserError:
        return {}


def vae_of(folder: Path) -> str:
    """Hash of the VAE that made the cache."""
    return str(_index(folder)["vae_sha256"])


def open_latents(folder: Path, shards: Path, vae_sha256: str) -> CachedLatents | None:
    """The cache, or None where `latents.cache` is false and latents are encoded as they are needed.

    Args:
        vae_sha256: of the VAE that is to have made it, as decoders have it.

    Raises:
        UserError: the cache is of other shards or of another VAE, or a file of it is missing.
    """
    index = _index(folder)
    made_by, files = index["vae_sha256"], index["shards"]
    if not index["cached"]:
        return None
    if made_by != vae_sha256:
        raise UserError(f"{folder} was made by VAE {made_by[:12]}, not {vae_sha256[:12]}; run `un2clip latents` again")
    for split, listed in read_index(shards).splits.items():
        for shard in listed:
            name, path = f"{split}/{shard.name}", file_of(folder, shards / split / shard.name)
            if files.get(name) != shard.sha256 or name not in index["sha256"] or not path.is_file():
                raise UserError(f"{folder} has no latents of {name}; run `un2clip latents` again")
            if made_of(path).split(" ")[:2] != [vae_sha256, shard.sha256]:
                raise UserError(f"{path} is of another VAE or another shard; run `un2clip latents` again")
    return CachedLatents(folder=folder, sha256=index["sha256"])


def _index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        if missing := {"cached", "vae_sha256", "shards", "sha256"} - index.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {folder / INDEX} ({error}); run `un2clip latents` to make it") from None
    return index
