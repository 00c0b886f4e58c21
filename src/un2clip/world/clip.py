"""A tiny CLIP: open_clip's own class, trained on image-text pairs."""

import math
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from un2clip import tracking
from un2clip.config import at_least
from un2clip.models.clip import Clip, load_clip, save_clip
from un2clip.training.config import rate_schedule
from un2clip.world import orders


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Shape and training of the tiny CLIP; names as in open_clip's configurations."""

    embed_dim: int
    image_px: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    text_width: int
    text_layers: int
    context_length: int
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int

    def __post_init__(self) -> None:
        at_least(self, 1, "embed_dim", "layers", "text_layers", "context_length", "steps", "batch_size")
        for name, of in (("width", "head_width"), ("text_width", "head_width"), ("image_px", "patch_size")):
            whole, part = getattr(self, name), getattr(self, of)
            if part < 1 or whole < 1 or whole % part:
                raise ValueError(f"{name} must be a multiple of {of}, got {whole} and {part}")


def new_clip(size: ClipSize, folder: Path) -> Clip:
    """A CLIP of this size with random weights, built by open_clip from the configuration that is saved with it."""
    model_cfg = {
        "embed_dim": size.embed_dim,
        "vision_cfg": {
            "image_size": size.image_px,
            "patch_size": size.patch_size,
            "width": size.width,
            "layers": size.layers,
            "head_width": size.head_width,
        },
        "text_cfg": {
            "context_length": size.context_length,
            "vocab_size": 49408,  # of CLIP's own BPE, which open_clip ships
            "width": size.text_width,
            "heads": max(1, size.text_width // size.head_width),
            "layers": size.text_layers,
        },
    }
    preprocess_cfg = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    raw = Clip(model=CLIP(**model_cfg), preprocess=None, tokenize=None, config=config)  # type: ignore[arg-type]
    save_clip(raw, folder)
    return load_clip(folder)


def train_clip(clip: Clip, pixel_values: Tensor, texts: Tensor, size: ClipSize) -> None:
    """Contrastive training (arXiv 2103.00020, figure 3), cosine rate with warm-up; in place."""
    model = clip.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.lr, weight_decay=size.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = rate_schedule(optimizer, size.steps, size.warmup_steps, "cosine")
    targets = torch.arange(size.batch_size, device=texts.device)
    progress = tqdm(
        orders(len(texts), size.batch_size, size.steps), total=size.steps, unit="step", desc="clip", mininterval=1
    )
    for step, index in enumerate(progress):
        image_features, text_features, logit_scale = model(pixel_values[index], texts[index])[:3]
        logits = logit_scale * image_features @ text_features.T
        loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as in the paper
        tracking.log_metrics(step, {"clip_loss": loss.item()})
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
