"""The objective of an assistant: the next token of every answer, told the picture and all that was said before."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutputWithPooling

from un2clip.assistants.prompts import IGNORED
from un2clip.datasets.loader import Batch
from un2clip.decoders.decoder import NoiseSample
from un2clip.errors import UserError
from un2clip.methods.objective import Objective


class NextToken(Objective):
    """Cross-entropy over the tokens of answers (arXiv 2304.08485), averaged over those of all processes.

    Attributes:
        llava: LlavaForConditionalGeneration; its encoder never trains.
    """

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.llava = llava

    def parts(self) -> dict[str, nn.Module]:
        inner = self.llava.model
        return {
            "projector": inner.multi_modal_projector,
            "language": nn.ModuleList([inner.language_model, self.llava.lm_head]),
        }

    def shards(self) -> list[nn.Module]:
        return [self.parts()["projector"], *self.llava.model.language_model.layers]

    def weights(self, batch: Batch) -> Tensor:
        """(b,): tokens of answers; the first token of a text has none before it."""
        return (batch["labels"][:, 1:] != IGNORED).sum(dim=1) * batch["valid"].float()

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """Patch tokens (B, tokens, width) float32 of the layer that is read, of pixel_values (B, 3, H, W)."""
        config, tower = self.llava.config, self.llava.model.vision_tower
        given = pixel_values.to(tower.device, tower.dtype)
        states = tower(given, output_hidden_states=True).hidden_states[config.vision_feature_layer]
        return (states[:, 1:] if config.vision_feature_select_strategy == "default" else states).float()

    def forward(self, batch: Batch, noise_sample: NoiseSample, log: bool = False) -> dict[str, Tensor]:
        """loss and accuracy (share of right tokens, 0 to 1), (b,) each: means over a conversation's answers.

        Args:
            batch: as reading.batches gives it.
        """
        features = batch["features"] if "features" in batch else self.features(batch["pixel_values"])
        projector = self.llava.model.multi_modal_projector
        # of pictures that are not shown too: every process goes through the same modules
        projected = projector(features.to(next(projector.parameters()).dtype))
        shown = projected[batch["shown"]]
        pictures = BaseModelOutputWithPooling(pooler_output=list(shown)) if len(shown) else None
        hidden = self.llava.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            mm_encoder_outputs={"image": pictures},
            use_cache=False,
        )[0]
        labels = batch["labels"][:, 1:]
        counts = labels != IGNORED
        logits = self.llava.lm_head(hidden[:, :-1][counts]).float()  # of 2,048 places only answers' have logits
        wanted = labels[counts]
        losses = cross_entropy(logits, wanted, reduction="none") + 0.0 * projected.sum()
        right = (logits.argmax(dim=1) == wanted).float()
        return {"loss": _mean(losses, counts), "accuracy": _mean(right, counts)}

    def prepare(
        self, trains: tuple[str, ...], *, frozen: torch.dtype, checkpointing: bool, channels_last: bool, compiled: bool
    ) -> None:
        """The encoder is held in `frozen`, and the language model in the phase in which it does not train.

        Raises:
            UserError: compiled: nothing of it is.
        """
        if compiled:
            raise UserError("assistant.compute.compile must be false: a LLaVA is trained uncompiled")
        language = self.llava.model.language_model
        self.llava.model.vision_tower.to(frozen)
        for part in (language, self.llava.lm_head):
            part.to(torch.float32 if "language" in trains else frozen)
        if checkpointing:
            language.activation_checkpointing_enable({"use_reentrant": False})
            language.train()  # where it is frozen too: in evaluation mode transformers keeps all activations
        else:
            language.activation_checkpointing_disable()


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """(b,): the mean of each row's values, one for each place of `counts` (b, L) that is true; 0 where it has none."""
    sums = torch.zeros(counts.shape, dtype=values.dtype, device=values.device)
    sums[counts] = values
    return sums.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
