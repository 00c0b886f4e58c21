"""Where tensors are computed: processor or GPU, and which of several processes this one is."""

import functools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from un2clip.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
#: Of arithmetic. tf32: a GPU rounds what it multiplies to 10 bits of mantissa. bf16: autocast.
Precision = Literal["fp32", "tf32", "bf16"]


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


def processes_here(wanted: int, device: str) -> int:
    """How many processes compute on this machine, with `device` of params.yaml; it does not touch a GPU.

    Args:
        wanted: so many; 0: one a visible GPU, or one without.
    """
    import torch

    return wanted or max(1, torch.cuda.device_count() if device != "cpu" else 1)


def has_bf16(device: "torch.device") -> bool:
    """Whether it multiplies in bf16 by instructions of its own; a GPU is taken to."""
    import torch

    names = ("avx512_bf16", "amx_bf16", "bf16")  # x86's two, and Arm's
    return device.type != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in names)


@functools.cache
def warn_of_bf16(device: "torch.device") -> None:
    """Say once that bf16 is no faster here: a processor without its instructions imitates them."""
    if rank() == 0 and not has_bf16(device):
        print(
            "un2clip: this processor has no bf16 instructions and imitates them, which may take more than ten times as "
            "long as fp32; set precision to fp32",
            file=sys.stderr,
        )


def autocast(device: "torch.device", precision: str) -> "torch.autocast":
    """Around what computes in bf16 where `precision` is bf16, else nothing; a processor that imitates it is named."""
    import torch

    if precision == "bf16":
        warn_of_bf16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """TF32 in products and convolutions where `precision` is tf32, else none; as it was afterwards."""
    import torch

    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = precision == "tf32"
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.allow_tf32 = was


def relative_error(found: "torch.Tensor", exact: "torch.Tensor") -> float:
    """Length of the difference of two tensors of one shape, over that of the exact one."""
    found, exact = found.double(), exact.double()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-9))


def matrix_rate(device: "torch.device", dtype: "torch.dtype", seconds: float = 0.1, side: int = 0) -> float:
    """Operations a second of a matrix product here and now, a multiplication and an addition counting one each.

    Args:
        seconds: for which it is measured, once it has run twice.
        side: of the matrices; 0: one that is large enough for the device.
    """
    import torch

    n, done = side or (8192 if device.type == "cuda" else 1024), 0
    rng = torch.Generator(device).manual_seed(0)  # of equal numbers a GPU's products would be faster
    matrix = torch.rand(n, n, generator=rng, device=device).to(dtype)

    def multiply() -> float:
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    multiply()
    start = now = multiply()
    while now < start + seconds:
        now, done = multiply(), done + 1
    return 2 * n**3 * done / (now - start)


def rank() -> int:
    """Number of this process, 0 to world_size() - 1; the process 0 writes and logs."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine: which of its GPUs it has."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
