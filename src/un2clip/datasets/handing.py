"""How workers hand batches over: through shared memory, which may be too small for them."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from un2clip.errors import GIB, UserError

Index = TypeVar("Index", contravariant=True)
SHARED_MEMORY = Path("/dev/shm")
#: Seconds for which a batch is waited for. A batch of 2,048 photographs takes a worker about a minute; beyond five it
#: hangs, as where shared memory filled up.
ANSWER_S = 300
AHEAD = 2  # batches that each worker holds ready, as torch's DataLoader has it
#: What torch says of workers that give nothing.
LOST = re.compile(r"DataLoader timed out after [\d.]+ seconds|DataLoader worker .*?(killed by signal: [\w ]+|exited)")


class Readable(Protocol[Index]):
    """What has a sample at an index, as a batch of one."""

    def __getitem__(self, index: Index, /) -> Mapping[str, Any]: ...


def check_shared_memory(reader: Readable[Index], batches: Iterator[list[Index]], workers: int) -> Iterator[list[Index]]:
    """Hold the batches that workers will have ready against the room in shared memory: torch hangs where it is short.

    Args:
        reader: the first sample is read, for its size.
        workers: of each process on this machine.

    Returns:
        The same batches.

    Raises:
        UserError: there is too little; names what there is, what is wanted, and the ways out.
    """
    first = next(batches, None)
    if not first:
        return iter(())
    sample = sum(value.nbytes for value in reader[first[0]].values() if isinstance(value, Tensor))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    wanted = processes * (AHEAD * workers + 1) * len(first) * sample
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free < wanted:
        raise UserError(
            f"{SHARED_MEMORY} has {free / GIB:.3f} GiB free, {workers} workers a process and batches of {len(first)} "
            f"images want {wanted / GIB:.3f}: make it larger (`docker run --shm-size=2g`; in a pod an emptyDir of "
            "medium Memory), or set `workers` of this stage to 0"
        )
    return chain([first], batches)
