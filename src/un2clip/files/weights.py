"""Weights as they come: files of safetensors that hold numbers of the right kind, every one of them finite."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from un2clip.errors import UserError, cause

#: No weights: the positions that older versions of transformers wrote, and how often batches were normalised.
COUNTS = ("position_ids", "num_batches_tracked")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights of one file of safetensors, on the CPU.

    Raises:
        UserError: it is absent or damaged, or holds integers or what is not finite.
    """
    check_kinds(file)
    weights = load_file(file)
    for key, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{file}: {key} is not finite; the file is damaged or of a training that failed")
    return weights


def check_kinds(file: Path) -> None:
    """Refuse a file of safetensors that holds anything but floating-point numbers; only its header is read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                kind = tensors.get_slice(key).get_dtype()
                if not kind.startswith(("F", "BF")) and not key.endswith(COUNTS):
                    raise UserError(f"{file}: {key} is {kind}, and weights are floating-point numbers")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {file}: {cause(error)}") from None
