"""Embeddings of texts, made once for all models with the same text tower: in memory, and those of classes on disk.

Methods leave the text tower as it is, so reference and tuned read every text alike; and the names of a data set are
the same in every run. What is kept is found by a hash of all that decides its bytes: the tower's weights, its
configuration and tokenizer, the texts, how many are embedded at once, and what computes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from un2clip.files.outputs import save_tensors
from un2clip.hashes import file_sha256, tensors_sha256

TENSOR, HASH = "embeddings", "sha256"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is kept for one text tower.

    Attributes:
        tower: hash of all that makes embeddings of texts: weights, configuration, tokenizer.
        folder: of the files, made where it is not there; None for memory alone.
        memory: key -> embeddings; models with the same tower share it.
    """

    tower: str
    folder: Path | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)

    def kept(self, texts: Sequence[str], at_once: int, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives for these texts, from memory where it was made before."""
        key = self._key(texts, at_once, device)
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def kept_on_disk(
        self, texts: Sequence[str], at_once: int, device: torch.device, make: Callable[[], Tensor]
    ) -> Tensor:
        """The same, from a file where one is there and whole; a damaged one is said, and made anew.

        A disk that cannot be written costs the next run its time, and this one nothing but a sentence.
        """
        return self.kept(
            texts, at_once, device, lambda: self._from_disk(self._key(texts, at_once, device), make, device)
        )

    def _from_disk(self, key: str, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        if self.folder is None:
            return make()
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            try:
                return _read(path, key).to(device)
            except (OSError, ValueError, SafetensorError) as error:
                print(f"un2clip: {path} is damaged ({error}); its texts are embedded again", file=sys.stderr)
        made = make()
        partial = path.with_name(f".{key}.{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors({TENSOR: made}, partial, {HASH: _sha256(key, made)})
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            print(f"un2clip: cannot keep embeddings of texts in {self.folder} ({error})", file=sys.stderr)
            with suppress(OSError):
                partial.unlink()
        return made

    def _key(self, texts: Sequence[str], at_once: int, device: torch.device) -> str:
        said = [self.tower, at_once, _computer(device), list(texts)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _read(path: Path, key: str) -> Tensor:
    """The tensor of a file that holds what was written under this key."""
    with safe_open(path, "pt") as file:
        said = (file.metadata() or {}).get(HASH)
        found: Tensor = file.get_tensor(TENSOR)
    if said != _sha256(key, found):
        raise ValueError("it is not what was written")
    return found


def _sha256(key: str, embeddings: Tensor) -> str:
    return hashlib.sha256(f"{key} {tensors_sha256({TENSOR: embeddings})}".encode()).hexdigest()


def _computer(device: torch.device) -> list[Any]:
    """What else decides the last bits: libraries, processor or GPU, threads."""
    what = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return [torch.__version__, open_clip.__version__, str(device.type), what, torch.get_num_threads()]


def text_tower(weights: str, config: Mapping[str, Any], tokenizer: Sequence[Path]) -> str:
    """Hash of a text tower.

    Args:
        weights: hash of the weights.
        config: content of open_clip_config.json.
        tokenizer: the files of a tokenizer that lies beside the weights.
    """
    files = {path.name: file_sha256(path) for path in tokenizer}
    said = [weights, config["model_cfg"].get("text_cfg"), config["model_cfg"].get("custom_text"), files]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
