"""How a training is started: in one process or in several, each with its device, the run's curves and its errors in
words; and where each of its phases is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from un2clip import devices, tracking
from un2clip.errors import UserError, disks_in_words
from un2clip.training import distributed
from un2clip.training.checkpoints import Checkpoints, Saved
from un2clip.training.config import ComputeConfig
from un2clip.training.lock import Lock


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


def kept_phase(
    stage: str, folder: Path | None, number: int, of: int, steps: int, compute: ComputeConfig, lock: Lock | None
) -> tuple[Checkpoints | None, Saved | None]:
    """Where phase `number` (from 0) of so many is kept, and what is there to go on from; that is said and tagged."""
    if folder is None:
        return None, None
    kept = Checkpoints(
        folder=folder / f"phase-{number + 1}" if number else folder,
        every=compute.checkpoint_every,
        keep=compute.keep_checkpoints,
        final=number < of - 1,
        tags={"mlflow_run": tracking.active_run()},
        lock=lock,
    )
    saved = kept.newest()
    if saved and devices.rank() == 0:
        print(f"{stage}: goes on after step {saved.step} of {steps}, from {kept.folder}")
        tracking.tag("resumed_from", saved.tags["mlflow_run"])
    return kept, saved
