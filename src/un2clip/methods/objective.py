"""The equation, once:

    L = rec_phi(x | cond_psi(enc_theta(x))) + sum of lambda_i anchor_i(enc_theta(x), enc_theta0(x))

`Reconstruction.forward` is where it is computed, terms and weights. Everything random is drawn beforehand, for the
whole batch and on the CPU, so that two encoders can be measured on the same noise.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from un2clip.datasets.loader import Batch
from un2clip.decoders.decoder import Decoder, NoiseConfig, NoiseSample
from un2clip.errors import UserError
from un2clip.methods.anchors import Anchor
from un2clip.methods.conditions import Condition
from un2clip.methods.features import Encoder, Features, Tokens


class Objective(nn.Module):
    """What the training loop trains: it gives parts by name, random numbers, and terms of which `loss` falls.

    Attributes:
        group: samples that are contrasted with each other; accumulation and processes cut a batch between groups only.
    """

    group: int = 1

    def parts(self) -> dict[str, nn.Module]:
        """What may train, by name."""
        raise NotImplementedError

    def shards(self) -> list[nn.Module]:
        """Modules whose weights are gathered one module at a time, where processes hold shares; none: it cannot be."""
        return []

    def draw(self, batch: Batch, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        """The random numbers of the n samples of the whole batch, of which this process has `batch`."""
        return {}

    def weights(self, batch: Batch) -> Tensor:
        """(b,): how much each sample counts, 0 for a corrupt one; losses are divided by the sum over all processes."""
        valid: Tensor = batch["valid"]
        return valid.float()

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        """Named terms, (b,) float32 each, each a mean over what the sample's weight counts; `loss` is among them.

        Args:
            log: whether terms that only the log wants are made too.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """What is done to the parameters after each step of the optimiser."""

    def prepare(
        self, trains: tuple[str, ...], *, frozen: torch.dtype, checkpointing: bool, channels_last: bool, compiled: bool
    ) -> None:
        """Make what does not train lighter, and all of it faster, as Decoder.prepare says."""


class Reconstruction(Objective):
    """Reconstruction through a decoder, and anchors to the reference: every method of the table.

    The reference is a copy of the encoder as it is now, made only where an anchor or the log needs it, and only where
    the encoder is ever trained; it stays what it is through all phases.

    Args:
        visual: the encoder, an image tower of open_clip's.
        condition: made for this encoder and decoder.
        anchors: name -> anchor and its weight lambda, of those that the method has.
        trains_encoder: whether any phase trains the encoder.
        refers: whether the log gets the cosine to the reference's embedding.
    """

    reference: Encoder | None

    def __init__(
        self,
        visual: nn.Module,
        condition: Condition,
        decoder: Decoder,
        anchors: Mapping[str, tuple[Anchor, float]],
        *,
        trains_encoder: bool,
        refers: bool,
    ) -> None:
        super().__init__()
        tokens = tokens_of(condition, *(anchor for anchor, _ in anchors.values()))
        self.encoder, self.condition, self.decoder = Encoder(visual, tokens), condition, decoder
        self.anchors = nn.ModuleDict({name: anchor for name, (anchor, _) in anchors.items()})
        self.lambdas = {name: weight for name, (_, weight) in anchors.items()}
        self.trains_encoder, self.refers = trains_encoder, refers
        needed = trains_encoder and (bool(anchors) or refers)
        self.reference = copy.deepcopy(self.encoder).requires_grad_(False).eval() if needed else None

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder.visual, "condition": self.condition, "decoder": self.decoder.network}

    def draw(self, batch: Batch, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        return self.decoder.draw(n, rng, noise) | self.condition.draw(n, rng)

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        """loss, the terms of `held`, each anchor's distance; cosine (to the reference's embedding) for the log.

        Args:
            batch: pixel_values, and `target`: what decoder.target made of it.
        """
        with torch.set_grad_enabled(self.training_encoder):
            features = self.encoder(batch["pixel_values"])
        terms = self.held(batch, features, noise_sample)
        loss = torch.stack(list(terms.values())).sum(dim=0) if len(terms) > 1 else next(iter(terms.values()))
        if self.anchors or (log and self.refers):
            reference = self._refer(batch["pixel_values"], features)
        for name, anchor in self.anchors.items():
            terms[name] = anchor(features, reference)
            loss = loss + self.lambdas[name] * terms[name]
        if log and self.refers and features.pooled is not None and reference.pooled is not None:
            terms["cosine"] = cosine_similarity(features.pooled.detach(), reference.pooled)
        return {"loss": loss} | terms

    def held(self, batch: Batch, features: Features, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """rec_phi of the equation: named terms, (B,) float32 each, whose sum falls."""
        return self.decoder.loss(batch["target"], self.condition(features, noise_sample), noise_sample)

    def check(self, image_px: int) -> None:
        """Raise a UserError where the encoder cannot read, or not in whole cells, the side that the decoder draws."""
        if self.decoder.as_read:
            self.encoder.at(image_px)
            cell = self.encoder.patch_px * self.condition.merge
            if image_px % cell:
                raise UserError(f"a side of {image_px} px is not a multiple of the {cell} px that one cell stands for")

    @property
    def training_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def _refer(self, pixel_values: Tensor, features: Features) -> Features:
        if self.reference is None:
            return features
        with torch.no_grad():
            found: Features = self.reference(pixel_values)
        return found

    def prepare(
        self, trains: tuple[str, ...], *, frozen: torch.dtype, checkpointing: bool, channels_last: bool, compiled: bool
    ) -> None:
        self.decoder.prepare(
            dtype=torch.float32 if "decoder" in trains else frozen,
            checkpointing=checkpointing,
            channels_last=channels_last,
            compiled=compiled,
        )
        visual: Any = self.encoder.visual
        visual.set_grad_checkpointing(checkpointing)
        if self.reference is not None:
            self.reference.to(frozen)
        if compiled:
            visual.compile()


def tokens_of(*asking: Condition | Anchor | type[Condition]) -> Tokens:
    """Which patch tokens the encoder must give; what does not read them does not count."""
    wanted = {each.tokens for each in asking} - {"none"}
    assert len(wanted) <= 1, f"one kind of tokens in a method, got {wanted}"
    return wanted.pop() if wanted else "none"
