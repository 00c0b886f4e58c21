"""Anchors: what holds an encoder near its reference, one number a sample. An anchor is an entry of ANCHORS.

Each is exactly 0 where the encoder is its reference.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, normalize

from un2clip.methods.features import Features, Tokens
from un2clip.models.clip import Clip

_AT_ONCE = 256  # texts in one forward


class Anchor(nn.Module):
    """Distance of an encoder's features from its reference's, (B,) float32.

    Attributes:
        tokens: which patch tokens it asks both encoders for.
    """

    tokens: Tokens = "none"

    def forward(self, features: Features, reference: Features) -> Tensor:
        raise NotImplementedError


class EmbeddingAnchor(Anchor):
    """Mean squared distance of the embeddings, in units of `std`, (1, D): the generator's normaliser."""

    std: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("std", std, persistent=False)

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.pooled is not None and reference.pooled is not None
        return ((features.pooled - reference.pooled) / self.std).square().mean(dim=1)


class CaptionAnchor(Anchor):
    """Divergence over a bank of captions, in nats.

    Args:
        captions: (K, D), of `embed_bank`.
    """

    captions: Tensor

    def __init__(self, captions: Tensor) -> None:
        super().__init__()
        self.register_buffer("captions", captions, persistent=False)

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.pooled is not None and reference.pooled is not None
        return caption_kl(features.pooled, reference.pooled, self.captions)


class TokenAnchor(Anchor):
    """Mean squared distance of the patch tokens: UniLIP's self-distillation (arXiv 2507.23278)."""

    tokens = "raw"

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.tokens is not None and reference.tokens is not None
        return (features.tokens - reference.tokens).square().mean(dim=(1, 2))


#: Name in the method table and in `finetune.anchors` -> how it is made, of the generator's deviation and the captions.
ANCHORS: dict[str, Callable[[Tensor | None, Tensor | None], Anchor]] = {
    "embedding": lambda std, captions: EmbeddingAnchor(_given(std)),
    "captions": lambda std, captions: CaptionAnchor(_given(captions)),
    "tokens": lambda std, captions: TokenAnchor(),
}


def caption_kl(image_embeds: Tensor, reference_embeds: Tensor, captions: Tensor) -> Tensor:
    """Divergence over a bank of captions from the reference, in nats, one number a sample (B,).

    KL(p0 || p) of the softmax over the captions at CLIP's own temperature: learning without forgetting
    (arXiv 1606.09282), for CLIP as in ZSCL (arXiv 2303.06628). What moves all captions alike costs nothing.

    Args:
        image_embeds, reference_embeds: (B, D), not L2-normalised.
        captions: (K, D), of length CLIP's scale.
    """
    with torch.autocast(captions.device.type, enabled=False):  # logits reach 100: bf16 would see steps of a half
        tuned, reference = (
            (normalize(embeds.float(), dim=1) @ captions.T).log_softmax(dim=1)
            for embeds in (image_embeds, reference_embeds)
        )
        return kl_div(tuned, reference, reduction="none", log_target=True).sum(dim=1)


@torch.no_grad()
def embed_bank(clip: Clip, captions: list[str]) -> Tensor:
    """(K, D): embeddings of length 1 times CLIP's own scale, so that a product with an image's gives CLIP's logits."""
    parts = (captions[i : i + _AT_ONCE] for i in range(0, len(captions), _AT_ONCE))
    return normalize(torch.cat([clip.embed_texts(part) for part in parts]), dim=1) * clip.model.logit_scale.exp()


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "the stage makes what an anchor of the row needs"
    return value
