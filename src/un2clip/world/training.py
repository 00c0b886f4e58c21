"""How a toy is trained: the training loop over a world that lies in memory, in one process."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from un2clip import tracking
from un2clip.datasets.loader import Batch
from un2clip.methods.objective import Objective
from un2clip.training.checkpoints import Checkpoints
from un2clip.training.config import PhaseConfig, single_process
from un2clip.training.loop import fit


@dataclass(frozen=True, kw_only=True)
class Schooling:
    """What the trainings of all toys share.

    Attributes:
        seed: order of the samples, and noise.
        precision: of the arithmetic; the weights are fp32 in any case.
        checkpoint_every: steps between two checkpoints.
        state: folder of the checkpoints, whose name holds all that decides the result; None for none.
    """

    seed: int
    precision: Literal["fp32", "bf16"]
    checkpoint_every: int
    state: Path | None


def train_toy(
    name: str,
    objective: Objective,
    part: str,
    phase: PhaseConfig,
    data: dict[str, Tensor],
    batch_size: int,
    schooling: Schooling,
) -> None:
    """Train one part of an objective, in place. Where a state is kept, a training that was cut off goes on.

    Args:
        name: of the toy, for the curves and the state.
        data: the whole of it by the names that the objective reads, (N, ...) each.
    """

    def batches(start: int) -> Iterator[Batch]:
        total = len(next(iter(data.values())))
        for index in orders(total, batch_size, phase.steps, start, schooling.seed):
            valid = torch.ones(len(index), dtype=torch.bool, device=next(iter(data.values())).device)
            fixed = {"keys": [str(i) for i in index.tolist()], "valid": valid}
            yield fixed | {key: value[index] for key, value in data.items()}

    checkpoints = None
    if schooling.state is not None:
        checkpoints = Checkpoints(
            folder=schooling.state / name, every=schooling.checkpoint_every, keep=1, final=True, tags={}
        )
    fit(
        objective,
        (part,),
        phase,
        dataclasses.replace(single_process(batch_size), precision=schooling.precision),
        batches,
        torch.Generator().manual_seed(schooling.seed),
        history=[],
        on_step=lambda step, record: tracking.log_metrics(step, {f"{name}_{key}": x for key, x in record.items()}),
        checkpoints=checkpoints,
        saved=checkpoints.newest() if checkpoints else None,
    )


def orders(total: int, batch_size: int, steps: int, start: int, seed: int) -> Iterator[Tensor]:
    """Indices of the full batches from step `start` on, each epoch in an order of its own, which the seed decides."""
    rng, done = torch.Generator().manual_seed(seed), 0
    while True:
        for index in torch.randperm(total, generator=rng)[: total // batch_size * batch_size].split(batch_size):
            if done == steps:
                return
            if done >= start:
                yield index
            done += 1
