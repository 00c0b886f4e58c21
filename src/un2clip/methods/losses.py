"""The terms of the equation for one batch: what DistributedDataParallel wraps."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from un2clip.decoders import Generator
from un2clip.methods.objective import Draws, anchor_distance, caption_divergence, diffusion_loss


class Losses(nn.Module):
    """The diffusion loss and the anchors.

    The reference is a copy of the encoder as it is now; where the encoder does not train, it is the encoder itself.

    Args:
        visual: the encoder.
        projector: between it and the generator.
        captions: (K, D), of caption_bank.py; None where nothing is held on them.
    """

    visual: nn.Module
    reference: nn.Module

    def __init__(
        self,
        visual: nn.Module,
        projector: nn.Module,
        generator: Generator,
        captions: Tensor | None,
        *,
        trains_encoder: bool,
    ) -> None:
        super().__init__()
        self.visual, self.projector, self.generator = visual, projector, generator
        self.captions, self.trains_encoder = captions, trains_encoder
        self.reference = copy.deepcopy(visual).requires_grad_(False).eval() if trains_encoder else visual

    def forward(self, pixel_values: Tensor, latents: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diffusion loss, distance to the reference's embedding, divergence over captions, cosine: (b,) float32 each.

        Without captions their divergence is 0.
        """
        with torch.set_grad_enabled(self.trains_encoder):
            image_embeds = self.visual(pixel_values).float()
        with torch.no_grad():
            reference_embeds = self.reference(pixel_values).float() if self.trains_encoder else image_embeds
        rec = diffusion_loss(self.generator, latents, self.projector(image_embeds).float(), draws)
        anchor = anchor_distance(self.generator, image_embeds, reference_embeds)
        cosine = cosine_similarity(image_embeds.detach(), reference_embeds)
        if self.captions is None:
            return rec, anchor, torch.zeros_like(anchor), cosine
        return rec, anchor, caption_divergence(image_embeds, reference_embeds, self.captions), cosine
