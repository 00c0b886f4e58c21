"""DCR (arXiv 2603.04803): reconstruction and contrast in one, in the space of what a denoiser predicts."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.config import at_least
from un2clip.datasets.augmenting import ViewConfig
from un2clip.datasets.loader import Batch
from un2clip.decoders.decoder import NoiseSample
from un2clip.decoders.diffusion import Diffusion
from un2clip.errors import UserError
from un2clip.methods.features import Features
from un2clip.methods.objective import Reconstruction


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The section `finetune.contrast`.

    Attributes:
        temperature: cosines are divided by it.
        target: what is true of an image: velocity, as in DCR's code; or epsilon, its noise, as in DCR's paper.
        group: images that are contrasted with each other; the denoiser runs once for every two of them.
        view: the second view of each image.
    """

    temperature: float
    target: Literal["velocity", "epsilon"]
    group: int
    view: ViewConfig

    def __post_init__(self) -> None:
        at_least(self, 2, "group")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Contrast(Reconstruction):
    """What is predicted of a noisy image under its own embedding is drawn to two others, and away from the rest.

    To the prediction under its second view's embedding, and to the truth; away from those under the embeddings of the
    other images of its group.
    """

    def __init__(self, *parts: Any, config: ContrastConfig, **named: Any) -> None:
        super().__init__(*parts, **named)
        if not isinstance(self.decoder, Diffusion):
            raise UserError(f"a contrast of predictions needs a denoiser, and {type(self.decoder).__name__} is none")
        self.config, self.group = config, config.group

    def held(self, batch: Batch, features: Features, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """contrast (B,): the mean of two cross-entropies in nats, as in DCR's code; a corrupt image draws nothing."""
        decoder, target, (count, group) = self.decoder, batch["target"], (len(batch["target"]), self.group)
        assert isinstance(decoder, Diffusion)
        with torch.set_grad_enabled(self.training_encoder):
            second = self.encoder(batch["view"])
        cond, positive = self.condition(features, noise_sample), self.condition(second, noise_sample)
        own = torch.arange(count, device=target.device)
        told = (own // group * group)[:, None] + torch.arange(group, device=target.device)  # (B, group): its group
        rows = own.repeat_interleave(group)
        repeated = {name: value[rows] for name, value in noise_sample.items()}
        under = decoder.predict(target[rows], cond.take(told.flatten()), repeated)
        under = normalize(under.flatten(1), dim=1).unflatten(0, (count, group))
        noise = noise_sample["noise"]
        if self.config.target == "velocity":
            noise = decoder.scheduler.get_velocity(target, noise, noise_sample["timesteps"])
        pair = [decoder.predict(target, positive, noise_sample), noise]
        others = torch.stack([normalize(each.flatten(1), dim=1) for each in pair], dim=1)
        anchor = under[own, own % group][:, None]
        logits = (anchor * torch.cat([others, under], dim=1)).sum(dim=2) / self.config.temperature
        no_negative = (told == own[:, None]) | ~batch["valid"].to(target.device)[told]
        left_out = torch.cat([torch.zeros_like(no_negative[:, :2]), no_negative], dim=1)
        return {"contrast": -logits.masked_fill(left_out, -torch.inf).log_softmax(dim=1)[:, :2].mean(dim=1)}
