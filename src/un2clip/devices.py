"""Where tensors are computed: the processor, or a GPU."""

import torch

from un2clip.config import UserError
from un2clip.training import distributed

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """The device that `device` of params.yaml means.

    TensorFloat-32 is switched off for convolutions, where torch has it on: its 10 bits of mantissa flip pairs.

    Args:
        name: auto (a GPU where there is one), cpu or cuda.

    Raises:
        UserError: an unknown name, or a GPU was asked for and torch sees none.
    """
    if name not in DEVICES:
        raise UserError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device is cuda and torch {torch.__version__} sees no GPU; set it to auto or cpu, or look at nvidia-smi"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", distributed.local_rank())
    torch.cuda.set_device(device)
    return device
