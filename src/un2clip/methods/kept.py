"""What a training leaves beside the encoder: its condition and its decoder, where they trained.

condition/ decoder/     as they are at the end
aligned/                both as they were before the encoder first moved, where a phase before had trained them and what
                        the decoder draws follows from what it is told: what the untouched encoder is to be seen through
"""

from pathlib import Path

import torch

from un2clip.decoders.decoder import Decoder
from un2clip.decoders.kinds import load_decoder, save_decoder
from un2clip.errors import UserError
from un2clip.methods.conditions import Condition, ConditionConfig, load_condition, save_condition
from un2clip.methods.features import Features
from un2clip.methods.table import Method

ALIGNED, CONDITION, DECODER = "aligned", "condition", "decoder"


def save_parts(
    row: Method, condition: Condition, decoder: Decoder, config: ConditionConfig, folder: Path, backbones: Path
) -> None:
    """Write of both what any phase of the row trains.

    Args:
        config: what the condition was made with.
        backbones: where the decoder came from.
    """
    if row.trains("condition") and list(condition.parameters()):
        save_condition(condition, row.condition, folder / CONDITION, config)
    if row.trains("decoder"):
        save_decoder(row.decoder, decoder, folder / DECODER, backbones)


def load_parts(folder: Path, features: Features, device: torch.device) -> tuple[Condition, Decoder]:
    """Condition and decoder that draw without noise, as `save_parts` left them.

    Args:
        features: of one batch of the encoder, with raw tokens.

    Raises:
        UserError: the folder has none, or they draw from noise, or are damaged, or of another encoder.
    """
    if not (folder / CONDITION).is_dir() or not (folder / DECODER).is_dir():
        raise UserError(
            f"{folder} has no {CONDITION}/ and {DECODER}/ of its own, as method unilip leaves them beside an encoder; "
            "another row's pictures are drawn from noise, and `un2clip reconstruct` shows them"
        )
    decoder = load_decoder(folder / DECODER, device)
    if decoder.random:
        raise UserError(
            f"what {folder / DECODER} draws depends on noise, so it gives no picture back; `un2clip reconstruct` shows "
            "what a generator draws"
        )
    return load_condition(folder / CONDITION, features, decoder), decoder
