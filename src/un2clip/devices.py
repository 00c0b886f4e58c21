"""Where tensors are computed: processor or GPU, and which of several processes this one is."""

import os
from typing import TYPE_CHECKING

from un2clip.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> "torch.device":
    """The device that `device` of params.yaml means.

    TensorFloat-32 is switched off for convolutions, where torch has it on: its 10 bits of mantissa flip pairs.

    Args:
        name: auto (a GPU where there is one), cpu or cuda.

    Raises:
        UserError: an unknown name, or a GPU was asked for and torch sees none.
    """
    import torch  # here, since stages without tensors ask for this process's number alone

    if name not in DEVICES:
        raise UserError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device is cuda and torch {torch.__version__} sees no GPU; set it to auto or cpu, or look at nvidia-smi"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """Number of this process, 0 to world_size() - 1; the process 0 writes and logs."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine: which of its GPUs it has."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
