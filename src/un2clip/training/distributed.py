"""One training on several processes, one a GPU: torch's process group, and how to start them.

Outside of torchrun everything here is the one process that there is.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from un2clip import devices
from un2clip.errors import DiskRefused, Stopped, UserError


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """The process group while it is needed: nccl on GPUs, gloo on processors; nothing for one process."""
    if devices.world_size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def summed(values: list[float], device: torch.device) -> list[float]:
    """Each value's sum over all processes, in float64."""
    if devices.world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return list(tensor.tolist())


def launch(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in `processes` processes on this machine, as `torchrun --standalone` does.

    Raises:
        UserError: one of them raised it; with its message.
        ChildFailedError: one of them failed otherwise; with its traceback.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it would tell the same failure three times
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        max_restarts=0,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    try:
        elastic_launch(config, function)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        message = failure.error_file_data["message"]  # nothing but a text where the process could not say why it died
        kind, _, said = str(message["message"] if isinstance(message, dict) else message).partition(": ")
        if kind == Stopped.__name__:
            raise Stopped(said, signal.SIGTERM if "by a signal" in said else None) from None
        for each in (UserError, DiskRefused):
            if kind == each.__name__:
                raise each(said) from None
        raise
    except SignalException as error:
        raise Stopped(
            f"stopped by a signal ({error.sigval.name}); the same command goes on", error.sigval.value
        ) from None
