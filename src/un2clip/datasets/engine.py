"""Who runs a function over shards: this process, several on this machine, one a GPU, or the nodes of a Ray cluster.

A task is a pure function of its argument that writes its own output, beside it first and then by its name. So tasks may
end in any order, and be done again.
"""

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import Literal, TypeVar

from tqdm import tqdm

from un2clip.datasets import ray_engine
from un2clip.devices import processes_here
from un2clip.errors import UserError

Task = TypeVar("Task")
#: Who runs the tasks of a stage.
Engine = Literal["processes", "ray"]
ATTEMPTS = 3  # of a task whose worker died: any of those that ran may have killed it


def at_once(processes: int, engine: Engine, device: str | None) -> int:
    """How many tasks of a stage run at once.

    Args:
        processes: the stage's number. 0: one a GPU, or a core, of this machine or of Ray's cluster.
        device: auto, cpu or cuda; without a GPU a machine computes one task at once. None: tasks that only read.
    """
    if processes:
        return processes
    if engine == "ray" and os.environ.get("RAY_ADDRESS"):
        return ray_engine.room(device)
    return processes_here(0, device) if device else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], None],
    tasks: Iterable[Task],
    processes: int,
    engine: Engine = "processes",
    device: str | None = None,
) -> Iterator[Task]:
    """Call a function on each task; each comes back when it is done, in any order.

    Args:
        function: of a module, so that another process finds it.
        processes: 1: this one, in order. More: so many beside this one, the n-th with the n-th GPU, each with as many
            threads as this one, so that the bytes are the same. They end when this one does. By Ray so many tasks at
            once, on any node.
        engine: who runs them; Ray also runs a single one.
        device: of the tasks, by which Ray finds a node; auto, cpu or cuda. None: tasks that only read.

    Raises:
        UserError: a task raised it, workers died on it three times, or Ray is not there.
    """
    left = list(tasks)
    processes = min(processes, len(left))
    if not left:
        return
    if processes <= 1 and engine == "processes":
        for task in left:
            function(task)
            yield task
        return
    waiting, attempts = list(range(len(left))), [0] * len(left)
    while waiting:
        died: list[int] = []
        if engine == "ray":
            running = ray_engine.run(function, left, waiting, processes, device)
        else:
            running = _run(function, left, waiting, processes)
        for number, lost in running:
            waiting.remove(number)
            if lost:
                died.append(number)
            else:
                yield left[number]
        for number in died:
            attempts[number] += 1
            if attempts[number] == ATTEMPTS:
                raise UserError(
                    f"a worker died {ATTEMPTS} times while it had {left[number]}; look at memory (`dmesg` names what "
                    "the system killed), or lower `processes` of this stage"
                )
        if died:
            tqdm.write(f"un2clip: a worker died; done again: {', '.join(str(left[n]) for n in died)}", file=sys.stderr)
            waiting = sorted([*waiting, *died])


def _run(
    function: Callable[[Task], None], tasks: list[Task], numbers: Iterable[int], processes: int
) -> Iterator[tuple[int, bool]]:
    """(number of a task, whether its worker died), until all are done or a worker died, which breaks the pool."""
    # a GPU and torch's threads do not outlive a fork of this process; of one that has only imported they need not
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    reader, writer = context.Pipe(duplex=False)
    places: SimpleQueue[int] = context.SimpleQueue()
    for place in range(processes):
        places.put(place)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    begin = (function.__module__, places, processes, threads, reader, dict(os.environ))
    pool = ProcessPoolExecutor(processes, context, _begin, begin)
    ahead, running, broken = iter(list(numbers)), dict[Future[None], int](), False
    try:
        while True:
            while not broken and len(running) < processes and (number := next(ahead, None)) is not None:
                try:
                    running[pool.submit(function, tasks[number])] = number
                except BrokenProcessPool:  # a worker died since it was last looked at
                    broken = True
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                lost = isinstance(done.exception(), BrokenProcessPool)
                broken = broken or lost
                if not lost:
                    done.result()
                yield running.pop(done), lost
    finally:
        if running:  # left by an error: the workers end at once, in the middle of their tasks
            writer.close()
        pool.shutdown(wait=True, cancel_futures=True)
        writer.close()
        reader.close()


def _begin(
    module: str,
    places: "SimpleQueue[int]",
    processes: int,
    threads: int,
    alive: Connection,
    variables: dict[str, str],
) -> None:
    """What each worker does first: its GPU, its threads, and to end when the process that began it does.

    The fork server, which outlives a pool, still has the variables with which the first one was begun.
    """
    os.environ.clear()
    os.environ.update(variables)
    importlib.import_module(module)
    torch = sys.modules.get("torch")  # tasks that only read are of modules without it, and quick to begin
    if torch and threads:
        torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(places.get() % max(1, torch.cuda.device_count() if torch else 0))
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    try:
        alive.recv()  # nothing is ever sent
    except (EOFError, OSError):
        os._exit(1)
