"""Anchors: what holds an encoder near its reference, one number a sample.

An anchor is 0 where the encoder is its reference.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from un2clip.decoders import Generator
from un2clip.models.clip import Clip

_AT_ONCE = 256  # texts in one forward


def anchor_distance(generator: Generator, image_embeds: Tensor, reference_embeds: Tensor) -> Tensor:
    """Mean squared distance to the reference's embedding, in the normaliser's units, one number a sample (B,)."""
    return ((image_embeds - reference_embeds) / generator.std).square().mean(dim=1)


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
