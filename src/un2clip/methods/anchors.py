"""Anchors: what holds an encoder near its reference, one number a sample. An anchor is an entry of ANCHORS.

Each is exactly 0 where the encoder is its reference.
"""

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, normalize

from un2clip.errors import UserError
from un2clip.methods.features import Features, Tokens
from un2clip.models.clip import Clip

#: Banks of texts that an anchor can ask for: captions of training images, or the corpus's common words.
Bank = Literal["captions", "words"]
_AT_ONCE = 256  # texts in one forward


class Anchor(nn.Module):
    """Distance of an encoder's features from its reference's, (B,) float32.

    Attributes:
        tokens: which patch tokens it asks both encoders for.
        bank: which bank of texts it is made of.
    """

    tokens: Tokens = "none"
    bank: Bank | None = None

    @classmethod
    def made_of(cls, std: Tensor, banks: Mapping[Bank, Tensor]) -> Self:
        """The anchor of what a row gives.

        Args:
            std: (1, D) of the embedding, the generator's normaliser.
            banks: (K, D) each, of `embed_bank`: those that anchors of the row ask for.
        """
        return cls()

    def forward(self, features: Features, reference: Features) -> Tensor:
        raise NotImplementedError


class EmbeddingAnchor(Anchor):
    """Mean squared distance of the embeddings, in units of `std`, (1, D): the generator's normaliser."""

    std: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def made_of(cls, std: Tensor, banks: Mapping[Bank, Tensor]) -> Self:
        return cls(std)

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.pooled is not None and reference.pooled is not None
        return ((features.pooled - reference.pooled) / self.std).square().mean(dim=1)


class BankAnchor(Anchor):
    """What is held is the likeness to a bank of texts.

    Args:
        texts: (K, D), of `embed_bank`.
    """

    bank: Bank
    texts: Tensor

    def __init__(self, texts: Tensor) -> None:
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)

    @classmethod
    def made_of(cls, std: Tensor, banks: Mapping[Bank, Tensor]) -> Self:
        return cls(banks[cls.bank])


class CaptionAnchor(BankAnchor):
    """Divergence over a bank of captions, in nats."""

    bank = "captions"

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.pooled is not None and reference.pooled is not None
        return caption_kl(features.pooled, reference.pooled, self.texts)


class CosineAnchor(BankAnchor):
    """Mean squared difference of CLIP's logits (scaled cosines) to a bank of words.

    The words name what the reference knows already; along them nothing may grow or shrink, nuisance included, and
    whatever no word of the bank names is free. Unlike the divergence of CaptionAnchor it also holds what moves all
    logits alike.
    """

    bank = "words"

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.pooled is not None and reference.pooled is not None
        with torch.autocast(self.texts.device.type, enabled=False):
            moved = normalize(features.pooled.float(), dim=1) - normalize(reference.pooled.float(), dim=1)
            return (moved @ self.texts.T).square().mean(dim=1)


class BandAnchor(Anchor):
    """Mean squared distance of the patch tokens' low spatial frequencies.

    Of the orthonormal 2-D DCT-II of the patch grid, the lowest quarter of each axis's frequencies, at least one, is
    held, and the rest is free: arXiv 2512.19693, table 4a, where that keeps the accuracy and costs 2 dB.

    Raises:
        UserError: the patches are no square grid.
    """

    tokens = "raw"

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.tokens is not None and reference.tokens is not None
        moved = features.tokens - reference.tokens
        side = math.isqrt(moved.shape[1])
        if side * side != moved.shape[1]:
            raise UserError(
                f"{moved.shape[1]} patches are no square grid, which the anchor `band` needs; take another method"
            )
        low = low_frequencies(side, moved)
        return torch.einsum("pi,qj,bijc->bpqc", low, low, moved.unflatten(1, (side, side))).square().mean(dim=(1, 2, 3))


class TokenAnchor(Anchor):
    """Mean squared distance of the patch tokens: UniLIP's self-distillation (arXiv 2507.23278)."""

    tokens = "raw"

    def forward(self, features: Features, reference: Features) -> Tensor:
        assert features.tokens is not None and reference.tokens is not None
        return (features.tokens - reference.tokens).square().mean(dim=(1, 2))


#: Name in the method table and in `finetune.anchors` -> its class.
ANCHORS: dict[str, type[Anchor]] = {
    "embedding": EmbeddingAnchor,
    "captions": CaptionAnchor,
    "cosines": CosineAnchor,
    "band": BandAnchor,
    "tokens": TokenAnchor,
}


def low_frequencies(side: int, like: Tensor) -> Tensor:
    """(P, side): the lowest quarter P of the rows of the orthonormal DCT-II, at least one."""
    frequency = torch.arange(max(1, side // 4), dtype=torch.float64)[:, None]
    place = torch.arange(side, dtype=torch.float64)
    rows = torch.cos(math.pi / side * (place + 0.5) * frequency) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows.to(like)


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
def embed_bank(clip: Clip, texts: list[str]) -> Tensor:
    """(K, D): embeddings of length 1 times CLIP's own scale, so that a product with an image's gives CLIP's logits."""
    parts = (texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE))
    return normalize(torch.cat([clip.embed_texts(part) for part in parts]), dim=1) * clip.model.logit_scale.exp()
