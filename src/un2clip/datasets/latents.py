"""The latents cache: what the VAE makes of every image, once, in a file of safetensors beside each shard.

Crops are deterministic, so the latents of an image never change and training need not encode it at every step.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from un2clip.datasets.shards import read_index
from un2clip.errors import UserError

INDEX = "latents.json"


@dataclass(frozen=True, kw_only=True)
class CachedLatents:
    """The latents that stage `latents` wrote, one sample at a time.

    Attributes:
        folder: split/shard.safetensors, each with `latents` (n, C, h, w), scaled, in the shard's order.
    """

    folder: Path

    def read(self, tar: Path, number: int) -> Tensor:
        """Latents of one sample of a shard, (C, h, w) float32."""
        return _open(file_of(self.folder, tar)).get_slice("latents")[number].float()


def file_of(folder: Path, tar: Path) -> Path:
    """Where the latents of `shards/split/00000.tar` lie: `folder/split/00000.safetensors`."""
    return folder / tar.parent.name / f"{tar.stem}.safetensors"


@functools.lru_cache(maxsize=4)
def _open(path: Path) -> safe_open:
    return safe_open(path, framework="pt")


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
            tar = shards / split / shard.name
            if files.get(f"{split}/{shard.name}") != shard.sha256 or not file_of(folder, tar).is_file():
                raise UserError(f"{folder} has no latents of {split}/{shard.name}; run `un2clip latents` again")
    return CachedLatents(folder=folder)


def _index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        if missing := {"cached", "vae_sha256", "shards"} - index.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {folder / INDEX} ({error}); run `un2clip latents` to make it") from None
    return index
