"""How a LLaVA sees a picture: resized by Pillow, padded to a square or cropped to it; and which layer it reads."""

from collections.abc import Sequence
from typing import Any, Literal

from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from un2clip.errors import UserError

#: pad: to a square with the mean colour, as LLaVA-1.5 is tuned and asked. crop: the middle, as it is aligned.
Way = Literal["pad", "crop"]


def picture_processor(side: int, mean: Sequence[float], std: Sequence[float], resample: Any, way: Way) -> Any:
    """The processor that makes pixel_values (B, 3, side, side) float32, normalised by mean and std.

    Args:
        resample: Pillow's number of the interpolation.
    """
    return LlavaImageProcessorPil(
        do_pad=way == "pad", size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=list(mean), image_std=list(std), resample=resample,
    )  # fmt: skip


def check_layer(layer: int | Sequence[int], layers: int, name: str) -> None:
    """Raise a UserError where the encoder has no such hidden state: 0 is its embeddings, `layers` its last block's."""
    for each in [layer] if isinstance(layer, int) else layer:
        if not -layers - 1 <= each <= layers:
            raise UserError(f"{name}: the language model reads layer {each} of an encoder that has {layers}")
