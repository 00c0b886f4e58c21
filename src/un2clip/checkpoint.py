"""CLIP checkpoints: a folder of open_clip_model.safetensors and open_clip_config.json, no pickle.

`open_clip.create_model_and_transforms("local-dir:FOLDER")` loads every folder written here.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from un2clip.config import UserError

# Without gradients torch would take another attention kernel, and an encoder would differ from itself by 1e-7.
torch.backends.mha.set_fastpath_enabled(False)

CPU = torch.device("cpu")
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP model, and how its inputs are made.

    Attributes:
        model: open_clip's own class. `encode_image` gives the embedding, (B, D) float32, not L2-normalised.
        preprocess: PIL image -> pixel_values (3, H, W) float32, by the model's own preprocess_cfg.
        tokenize: texts -> token ids (B, L) int64.
        config: content of open_clip_config.json.
    """

    model: CLIP
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    config: dict[str, Any]

    @property
    def embed_dim(self) -> int:
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def embed(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (B, 3, H, W), anywhere -> embedding (B, D) on the model's device, not L2-normalised."""
        return self.model.encode_image(pixel_values.to(self.device, non_blocking=True))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Texts -> embedding (N, D) on the model's device, not L2-normalised."""
        return self.model.encode_text(self.tokenize(texts).to(self.device))


def load_clip(folder: Path, device: torch.device = CPU) -> Clip:
    """Load a CLIP folder in fp32 and evaluation mode; whatever trains sets its own mode.

    Raises:
        UserError: a file is absent or damaged, or the weights do not fit the configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a CLIP checkpoint: it has no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{folder} does not load as an open_clip model: {' '.join(str(error).split())[:300]}") from None
    return Clip(model=model.eval().to(device), preprocess=preprocess, tokenize=tokenize, config=config)


def save_clip(clip: Clip, folder: Path) -> None:
    """Write the model and its configuration; the same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(clip.config, indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in clip.model.state_dict().items()}, folder / WEIGHTS)


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, dtypes and values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_sha256(folder: Path) -> str:
    """Hash of the weights of a CLIP folder, both towers.

    Raises:
        UserError: the weights are absent or damaged.
    """
    try:
        return sha256_of(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error}") from None


def text_sha256(model: torch.nn.Module) -> str:
    """Hash of everything that is not the image tower: it must be the same before and after every method."""
    return sha256_of({name: value for name, value in model.state_dict().items() if not name.startswith("visual.")})
