"""How a training is started: in one process or in several, each with its device, the run's curves and its errors in
words; and how each of its phases is kept and trained."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from un2clip import devices, tracking
from un2clip.datasets.loader import Batch
from un2clip.errors import UserError, disks_in_words
from un2clip.training import distributed
from un2clip.training.checkpoints import Checkpoints
from un2clip.training.config import ComputeConfig, PhaseConfig
from un2clip.training.lock import Lock
from un2clip.training.loop import Objective, fit
from un2clip.training.progress import Record


class Job(Protocol):
    """One call of a stage that trains, as it is handed to each process."""

    @property
    def device(self) -> str: ...
    @property
    def compute(self) -> ComputeConfig: ...
    @property
    def written(self) -> list[Path]: ...


def start(stage: str, work: Callable[[Any, torch.device], None], job: Job) -> None:
    """Call work(job, device) in as many processes as the job has, or as torchrun has begun.

    Args:
        stage: its name, which is that of its section of the numbers.
        work: a function of a module.
        job: device, compute, and the folders that are written.

    Raises:
        UserError: memory is short, among others.
    """
    processes = job.compute.processes_here(job.device) if devices.world_size() == 1 else 1
    if processes > 1:
        distributed.launch(processes, _one_process, stage, work, job, tracking.active_run())
    else:
        _one_process(stage, work, job, None)


def _one_process(stage: str, work: Callable[[Any, torch.device], None], job: Job, run_id: str | None) -> None:
    """`run_id` is the stage's run in MLflow where another process has begun it."""
    device = devices.pick_device(job.device)
    with distributed.group(device), tracking.attached(run_id if devices.rank() == 0 else None):
        try:
            with disks_in_words(job.written):
                work(job, device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {device} ({str(error).split('. ')[0]}); lower {stage}.compute.max_per_device, set "
                f"{stage}.compute.gradient_checkpointing to true, or precision and frozen there to bf16"
            ) from None


def state_folder(checkpoints: str, decides: Mapping[str, Any]) -> Path | None:
    """Where the state of a training is kept: a folder named by all that decides its result; None for ""."""
    if not checkpoints:
        return None
    return Path(checkpoints) / hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def train_phase(
    stage: str,
    objective: Objective,
    trains: Sequence[str],
    phase: PhaseConfig,
    compute: ComputeConfig,
    batches: Callable[[int], Iterator[Batch]],
    history: list[Record],
    *,
    number: int,
    of: int,
    seed: int,
    done: int,
    on_read: Callable[[int, int], None],
    folder: Path | None,
    lock: Lock | None,
    flops: Callable[[], float] = lambda: 0.0,
) -> None:
    """Train phase `number` (from 0) of so many, in place; one that was cut off goes on from its own state.

    Args:
        stage: its name, for messages.
        objective, trains, phase, compute, batches, history, done, on_read: as of `fit`.
        seed: of the noise samples, with the phase's number.
        folder: of the training's state; None for none.
        flops: as of `fit`.
    """
    checkpoints = saved = None
    if folder is not None:
        checkpoints = Checkpoints(
            folder=folder / f"phase-{number + 1}" if number else folder,
            every=compute.checkpoint_every,
            keep=compute.keep_checkpoints,
            final=number < of - 1,
            tags={"mlflow_run": tracking.active_run()},
            lock=lock,
        )
        saved = checkpoints.newest()
        if saved and devices.rank() == 0:
            print(f"{stage}: goes on after step {saved.step} of {phase.steps}, from {checkpoints.folder}")
            tracking.tag("resumed_from", saved.tags["mlflow_run"])
    fit(
        objective,
        trains,
        phase,
        compute,
        batches,
        torch.Generator().manual_seed(seed + number),
        history,
        done=done,
        on_step=tracking.log_metrics,
        on_read=on_read,
        checkpoints=checkpoints,
        saved=saved,
        flops=flops,
    )
