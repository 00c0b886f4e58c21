"""How a training is computed: processes, precision, memory. None of it is meant to change what is learned."""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.training import distributed

#: The fields of `Running` that change the result by more than rounding.
DECIDING = ("precision", "frozen")
Record = dict[str, float]
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a training is computed.

    Attributes:
        processes: on this machine, one a GPU; 0 for as many as GPUs are visible. torchrun's own number goes before it.
        workers: processes that read images, beside each of them; 0 for none.
        max_per_device: images in one forward; a process whose share of the batch is larger accumulates gradients.
        precision: of the arithmetic; with bf16, what trains is held in fp32 all the same.
        frozen: precision in which the weights that do not train are held.
        gradient_checkpointing: compute activations twice instead of keeping them.
        channels_last: memory format of the generator's convolutions.
        compile: torch.compile for encoder and U-Net.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: how many are kept.
    """

    processes: int
    workers: int
    max_per_device: int
    precision: Literal["fp32", "bf16"]
    frozen: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    channels_last: bool
    compile: bool
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        at_least(self, 1, "max_per_device", "checkpoint_every", "keep_checkpoints")
        at_least(self, 0, "processes", "workers")
        if self.frozen == "bf16" and self.precision != "bf16":
            raise ValueError("frozen must be fp32 where precision is fp32, got bf16")

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def processes_here(self, device: str) -> int:
        """How many processes train on this machine, with `device` of params.yaml; it does not touch a GPU."""
        return self.processes or max(1, torch.cuda.device_count() if device != "cpu" else 1)

    def pieces(self, size: int) -> Iterator[slice]:
        """A process's share of a batch, cut into parts of at most `max_per_device`."""
        step = self.max_per_device
        return (slice(start, min(start + step, size)) for start in range(0, size, step))


def plainly(batch_size: int) -> Running:
    """One process, fp32, the whole batch at once: how toy backbones are trained."""
    return Running(
        processes=1,
        workers=0,
        max_per_device=batch_size,
        precision="fp32",
        frozen="fp32",
        gradient_checkpointing=False,
        channels_last=False,
        compile=False,
        checkpoint_every=1,
        keep_checkpoints=1,
    )


class Progress:
    """The bar of a training, in process 0, and what is measured of the machine meanwhile."""

    def __init__(self, steps: int, start: int, device: torch.device, desc: str) -> None:
        self.bar = tqdm(
            total=steps, initial=start, unit="step", mininterval=1, desc=desc, disable=distributed.rank() > 0
        )
        self.device = device
        self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, record: Record, samples: int) -> Record:
        """Count one step of so many samples. Returns images_per_s and memory_gib (the most that was in use so far)."""
        now = time.monotonic()
        measured = {"images_per_s": samples / max(1e-9, now - self.last), "memory_gib": peak_gib(self.device)}
        self.last = now
        shown = {name: f"{record[name]:.4f}" for name in ("loss", "grad_norm", "cosine")}
        shown |= {"images/s": f"{measured['images_per_s']:.1f}", "GiB": f"{measured['memory_gib']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        return measured


def peak_gib(device: torch.device) -> float:
    """The most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
