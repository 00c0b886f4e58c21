"""What a person sees of a training while it runs: the bar, its speed, the memory that it takes."""

import resource
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from un2clip import devices

Record = dict[str, float]
GIB = 2**30
PATIENCE_S = 10.0  # a training as short as that is not measured by its operations


class Progress:
    """The bar of a training, in process 0, and what is measured of the machine meanwhile.

    Args:
        flops: counts the operations that one sample takes; 0 where that cannot be counted.
        dtype: of most of them.
    """

    def __init__(
        self,
        steps: int,
        start: int,
        device: torch.device,
        desc: str,
        flops: Callable[[], float] = lambda: 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.bar = tqdm(total=steps, initial=start, unit="step", mininterval=1, desc=desc, disable=devices.rank() > 0)
        self.device = device
        self.flops, self.dtype = flops, dtype
        self.at_most: float | None = None  # samples a second at the matrix rate; 0 where that is not known
        self.begun = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, record: Record, samples: int) -> Record:
        """Count one step of so many samples.

        Returns:
            images_per_s and memory_gib (the most that was in use so far); and, once the training has taken a while,
            mfu: operations a second as a share of the matrix rate of all processes' devices, which is measured once.
        """
        now = time.monotonic()
        measured = {"images_per_s": samples / max(1e-9, now - self.last), "memory_gib": peak_gib(self.device)}
        if self.at_most is None and now > self.begun + PATIENCE_S and not self.bar.disable:
            self.at_most, flops = 0.0, self.flops()
            if flops:
                self.at_most = devices.world_size() * devices.matrix_rate(self.device, self.dtype) / flops
            now = time.monotonic()
        if self.at_most:
            measured["mfu"] = measured["images_per_s"] / self.at_most
        self.last = now
        shown: dict[str, str] = {
            name: f"{record[name]:.4f}" for name in ("loss", "grad_norm", "cosine") if name in record
        }
        shown |= {"images/s": f"{measured['images_per_s']:.1f}", "GiB": f"{measured['memory_gib']:.1f}"}
        if "mfu" in measured:
            shown["MFU"] = f"{100 * measured['mfu']:.0f} %"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        return measured


def peak_gib(device: torch.device) -> float:
    """The most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
