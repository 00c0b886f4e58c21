"""Tasks by Ray core: plain tasks, on the nodes of a cluster or on this machine.

The cluster is where RAY_ADDRESS says (Ray's own variable); without one, Ray is started here. Its workers end with the
last task, so that none keeps what it has read for other tasks. All nodes must see the same files under the same paths
and have this package. Ray Data is not used: it keeps no order.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from un2clip.errors import UserError, cause

Task = TypeVar("Task")
STORE_BYTES = 10**8  # of shared memory for Ray's objects: tasks hand over their names and None. Ray wants 75 MiB


def room(device: str | None) -> int:
    """How many tasks the cluster of RAY_ADDRESS runs at once: one a GPU, where it has any that are wanted, or a core.

    Args:
        device: auto, cpu or cuda; without a GPU a task has as many cores as this process has threads. None: tasks
            that only read.
    """
    with connected(1) as ray:
        needs, found = _needs(ray, device), ray.cluster_resources()
        resource, each = ("GPU", 1) if needs["num_gpus"] else ("CPU", needs["num_cpus"])
        return max(1, int(found.get(resource, 0) // each))


def run(
    function: Callable[[Task], None],
    tasks: list[Task],
    numbers: Iterable[int],
    processes: int,
    device: str | None,
) -> Iterator[tuple[int, bool]]:
    """(number of a task, whether its worker or its node died), in any order, until all are done."""
    with connected(processes * (_threads() if device else 1)) as ray:
        remote = ray.remote(max_retries=0, **_needs(ray, device))(_call)
        ahead, running = iter(list(numbers)), dict[Any, int]()
        try:
            while True:
                while len(running) < processes and (number := next(ahead, None)) is not None:
                    running[remote.remote(function, tasks[number], processes, _threads(), os.getcwd())] = number
                if not running:
                    return
                for done in ray.wait(list(running), num_returns=1)[0]:
                    yield running[done], _lost(ray, done)
                    del running[done]
        finally:
            for left in running:  # by an error
                ray.cancel(left, force=True)


@contextmanager
def connected(cores: int) -> Iterator[Any]:
    """Ray, of the cluster of RAY_ADDRESS, or started here with so many cores; one that is there already stays.

    Raises:
        UserError: it is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it tells its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what asks for no GPU is left as it is
    try:
        import ray
    except ImportError:
        raise UserError("engine is ray, which is not installed: pip install 'un2clip[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    here = {"num_cpus": cores, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=True, logging_level="error", **(here if address == "local" else {}))
    except Exception as error:  # it raises plain ones too
        where = "here" if address == "local" else f"at {address} (RAY_ADDRESS)"
        raise UserError(f"Ray does not answer {where}: {cause(error)}") from None
    finally:
        if main:  # Ray exchanges it, and this program's way to end would be lost
            signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def _needs(ray: Any, device: str | None) -> dict[str, int]:
    """What a task asks of a node; no more cores than one has, or it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device in ("auto", "cuda") and any(node.get("GPU", 0) >= 1 for node in nodes):
        return {"num_cpus": 1, "num_gpus": 1}
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return {"num_cpus": max(1, min(_threads() if device else 1, largest)), "num_gpus": 0}


def _threads() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else 1


def _call(function: Callable[[Task], None], task: Task, processes: int, threads: int, folder: str) -> None:
    """What a worker does. Ray sets OMP_NUM_THREADS to a task's cores, and other threads round otherwise."""
    os.chdir(folder)  # tasks may have relative paths, and Ray has a folder of its own
    os.environ["LOCAL_RANK"] = "0"  # a task sees its own GPU alone
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    torch = sys.modules.get("torch")
    if torch:
        torch.set_num_threads(threads)
    function(task)


def _lost(ray: Any, done: Any) -> bool:
    gone = ray.exceptions
    try:
        ray.get(done)
    except gone.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except (
        gone.WorkerCrashedError, gone.NodeDiedError, gone.LocalRayletDiedError, gone.OutOfMemoryError,
        gone.ObjectLostError,  # the node died with the answer
    ):  # fmt: skip
        return True
    return False
