"""An encoder that was told what the questions ask: the control of assistants that must score higher.

The shipped encoders learn from captions that hold few details. This one learns all attributes of a scene from the
patch tokens that a language model reads, by cross-entropy. Where its assistants answer no better than the reference's,
the questions, or the training of the language model, cannot show a gain, whatever made it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from un2clip.config import build
from un2clip.datasets.loader import Batch
from un2clip.decoders.decoder import NoiseSample
from un2clip.devices import pick_device
from un2clip.methods.features import Encoder
from un2clip.methods.objective import Objective
from un2clip.models.clip import Clip
from un2clip.stages.backbones import Backbones
from un2clip.world import scenes as world
from un2clip.world.probing import draw_asked
from un2clip.world.scenes import ATTRIBUTES
from un2clip.world.training import Schooling, train_toy
from un2clip.world.writing import rendered

NOT_ASKED = -100  # a label that does not count, in torch's cross_entropy


class Labelled(Objective):
    """Each attribute of a scene, read linearly from all patch tokens of one layer.

    Args:
        visual: image tower.
        layer: of the tokens, as of Encoder.
        like: pixel_values (1, 3, H, W), for the size of what is read.
    """

    def __init__(self, visual: nn.Module, layer: int, like: Tensor) -> None:
        super().__init__()
        self.encoder = Encoder(visual, "raw", layer)
        with torch.no_grad():
            width = self._tokens(like).shape[1]
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in ATTRIBUTES.values()).to(like.device)

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        tokens = self.encoder(pixel_values).tokens
        assert tokens is not None
        flat: Tensor = tokens.flatten(1)
        return flat

    def parts(self) -> dict[str, nn.Module]:
        return {"clip": nn.ModuleList([self.encoder, self.heads])}

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        """loss, (b,): mean over the attributes that are asked of a scene; labels (b, attributes), or NOT_ASKED."""
        tokens, labels = self._tokens(batch["pixel_values"]), batch["labels"]
        losses = [
            cross_entropy(head(tokens), labels[:, i], ignore_index=NOT_ASKED, reduction="none")
            for i, head in enumerate(self.heads)
        ]
        return {"loss": torch.stack(losses, dim=1).sum(dim=1) / (labels != NOT_ASKED).sum(dim=1)}


def with_labels(clip: Clip, params: Mapping[str, Any]) -> None:
    """Train the image tower, in place, as long as a toy CLIP trains: `backbones.phases.clip` has the numbers.

    As many scenes as `shapes.train_scenes`, of the training half of the world and uniform in all attributes, as those
    of which language models learn.

    Args:
        params: the numbers.
    """
    clip.model.to(pick_device(params["device"]))
    backbones, shapes = build(Backbones, params["backbones"], "backbones"), params["shapes"]
    rng = np.random.default_rng([params["seed"], len(ATTRIBUTES)])  # not the numbers that the world itself is drawn by
    scenes, asked = draw_asked(rng, shapes["train_scenes"], lambda drawn: ~world.is_heldout(drawn))
    pictures = rendered(rng, scenes, shapes["image_px"], "render labels")
    data = {
        "pixel_values": torch.stack([clip.preprocess(Image.fromarray(pixels)) for pixels in pictures]).to(clip.device),
        "labels": torch.tensor(np.where(asked, scenes, NOT_ASKED)).to(clip.device),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params["seed"])
        objective = Labelled(clip.model.visual, params["assistant"]["layer"], data["pixel_values"][:1])
    schooling = Schooling(
        seed=params["seed"], precision=backbones.precision, checkpoint_every=backbones.checkpoint_every, state=None
    )
    train_toy("labels", objective, "clip", backbones.phases["clip"], data, backbones.clip.batch_size, schooling)
