"""A tiny CLIP: open_clip's own class, trained on image-text pairs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from un2clip.config import at_least
from un2clip.datasets.loader import Batch
from un2clip.decoders import NoiseSample
from un2clip.methods.objective import Objective
from un2clip.models.clip import Clip, load_clip, save_clip
from un2clip.training.config import PhaseConfig
from un2clip.world.scenes import ATTRIBUTES, Captions, Ints, captions, check_plain, draw
from un2clip.world.training import Schooling, train_toy


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Shape of the tiny CLIP, and its batch; names as in open_clip's configurations.

    Attributes:
        text: joint: both towers learn together. locked: the text tower learns the words before, and stays.
    """

    embed_dim: int
    image_px: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    text_width: int
    text_layers: int
    context_length: int
    batch_size: int
    text: Literal["joint", "locked"]

    def __post_init__(self) -> None:
        at_least(self, 1, "embed_dim", "layers", "text_layers", "batch_size")
        at_least(self, 2, "context_length")  # a text's beginning and its end
        for name, of in (("width", "head_width"), ("text_width", "head_width"), ("image_px", "patch_size")):
            whole, part = getattr(self, name), getattr(self, of)
            if part < 1 or whole < 1 or whole % part:
                raise ValueError(f"{name} must be a multiple of {of}, got {whole} and {part}")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a locked text tower learns from.

    Attributes:
        scenes: how many are drawn for it.
        plain: probability that a detail has its plain value in them.
        captions: how they are described.
    """

    scenes: int
    plain: float
    captions: Captions

    def __post_init__(self) -> None:
        at_least(self, 1, "scenes")
        check_plain(self.plain)


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


class Contrastive(Objective):
    """CLIP's own loss (arXiv 2103.00020, figure 3): each image against the texts of its group, and the other way round.

    Args:
        group: samples that are contrasted with each other.
        tower: what gives the features (B, D) in the images' place; the model's own image tower, or a stand-in for it.
        trained: part of this objective that trains.
    """

    def __init__(self, model: CLIP, group: int, tower: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.model, self.group, self.tower, self.trained = model, group, tower, trained

    def parts(self) -> dict[str, nn.Module]:
        return {"clip": self.trained}

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        image_features = normalize(self.tower(batch["images"]), dim=-1)
        text_features = self.model.encode_text(batch["texts"], normalize=True)
        images, texts = (each.unflatten(0, (-1, self.group)) for each in (image_features, text_features))
        logits = self.model.logit_scale.exp() * images @ texts.mT
        own = torch.arange(self.group, device=logits.device).repeat(len(logits))
        rows, columns = (cross_entropy(each.flatten(0, 1), own, reduction="none") for each in (logits, logits.mT))
        return {"loss": (rows + columns) / 2}

    @torch.no_grad()
    def after_step(self) -> None:
        """The temperature stays above 1/100, as in the paper."""
        self.model.logit_scale.clamp_(0, math.log(100))


def train_clip(
    clip: Clip, pixel_values: Tensor, texts: Tensor, size: ClipSize, phase: PhaseConfig, schooling: Schooling
) -> None:
    """Contrastive training on the whole world, in place; a batch is one group. A locked text tower stays as it is."""
    model: CLIP = clip.model
    tower = model.visual
    trained = nn.ModuleList([tower, nn.ParameterList([model.logit_scale])]) if size.text == "locked" else model
    data = {"images": pixel_values, "texts": texts}
    train_toy(
        "clip", Contrastive(model, size.batch_size, tower, trained), "clip", phase, data, size.batch_size, schooling
    )


def train_words(
    clip: Clip, size: ClipSize, words: Words, phase: PhaseConfig, schooling: Schooling, device: torch.device
) -> None:
    """Let the text tower learn what every word means, in place, before it sees an image.

    A real CLIP's captions are hundreds of millions, so its text tower tells words apart that its images hardly show
    (arXiv 2401.06209). Here the scenes themselves stand in the images' place: a linear map of their attributes.
    """
    rng = np.random.default_rng(schooling.seed)
    drawn = draw(rng, words.scenes, plain=words.plain, heldout=False)
    texts = clip.tokenize(captions(rng, drawn, words.captions)).to(device)
    attributes = one_hot(drawn).to(device)
    tower = nn.Linear(attributes.shape[1], clip.embed_dim, device=device)
    objective = Contrastive(clip.model, size.batch_size, tower, nn.ModuleList([clip.model, tower]))
    data = {"images": attributes, "texts": texts}
    train_toy("words", objective, "clip", phase, data, size.batch_size, schooling)


def one_hot(drawn: Ints) -> Tensor:
    """Scenes (N, attributes) as float32 zeros and ones, one column a value of an attribute."""
    columns = [torch.tensor(np.eye(len(values))[drawn[:, i]]) for i, values in enumerate(ATTRIBUTES.values())]
    return torch.cat(columns, dim=1).float()
