"""A row of the method table as an objective: its encoder, condition, decoder and anchors put together."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from un2clip.config import lookup
from un2clip.decoders import Decoder, Unclip
from un2clip.methods.anchors import ANCHORS, Anchor, Bank
from un2clip.methods.conditions import CONDITIONS, Condition, ConditionConfig, new_condition
from un2clip.methods.contrast import Contrast, ContrastConfig
from un2clip.methods.features import Encoder, Features
from un2clip.methods.objective import Reconstruction, tokens_of
from un2clip.methods.table import Method
from un2clip.models.clip import Clip


def new_objective(
    row: Method,
    clip: Clip,
    decoder: Decoder,
    weights: Mapping[str, float],
    *,
    banks: Mapping[Bank, Tensor] | None = None,
    seed: int,
    conditions: ConditionConfig | None = None,
    contrast: ContrastConfig | None = None,
    refers: bool = False,
) -> Reconstruction:
    """The objective of a row, for this CLIP and this decoder; both are trained in place.

    Args:
        weights: anchor -> lambda, `finetune.anchors` of params.yaml.
        banks: (K, D) each, of anchors.embed_bank: those that the row's anchors ask for.
        seed: of a condition that begins at random.
        conditions: what it is made with, where it is made with numbers.
        contrast: numbers of a row that contrasts.
        refers: whether the log gets the cosine to the reference.

    Raises:
        UserError: encoder and decoder do not fit, or an anchor has no weight.
    """
    if isinstance(decoder, Unclip):
        decoder.check_fits(clip.embed_dim)
    condition = new_condition(row.condition, probe(clip, CONDITIONS[row.condition]), decoder, seed, conditions)
    std = decoder.std if isinstance(decoder, Unclip) else torch.ones(1, clip.embed_dim, device=clip.device)
    anchors = {
        name: (ANCHORS[name].made_of(std, banks or {}), lookup(weights, name, "weight of anchor"))
        for name in row.anchors
    }
    kind: Callable[..., Reconstruction] = Reconstruction
    if row.contrasts:
        assert contrast is not None, "a row that contrasts is made with numbers"
        kind = partial(Contrast, config=contrast)
    return kind(clip.model.visual, condition, decoder, anchors, trains_encoder=row.trains("encoder"), refers=refers)


@torch.no_grad()
def probe(clip: Clip, *asking: type[Condition] | Anchor) -> Features:
    """The features of one black image, for their shapes."""
    tower = Encoder(clip.model.visual, tokens_of(*asking))
    return tower(torch.zeros(1, 3, *clip.image_size, device=clip.device))
