"""How a toy is trained: the training loop over a world that lies in memory, in one process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from un2clip import tracking
from un2clip.datasets.loader import Batch
from un2clip.methods.objective import Objective
from un2clip.training.config import PhaseConfig, single_process
from un2clip.training.loop import fit


def train_toy(
    name: str, objective: Objective, part: str, phase: PhaseConfig, data: dict[str, Tensor], batch_size: int, seed: int
) -> None:
    """Train one part of an objective, in place.

    Args:
        name: of the toy, for the curves.
        data: the whole of it by the names that the objective reads, (N, ...) each.
        seed: of the noise samples.
    """

    def batches(start: int) -> Iterator[Batch]:
        total = len(next(iter(data.values())))
        for index in orders(total, batch_size, phase.steps):
            valid = torch.ones(len(index), dtype=torch.bool, device=next(iter(data.values())).device)
            fixed = {"keys": [str(i) for i in index.tolist()], "valid": valid}
            yield fixed | {key: value[index] for key, value in data.items()}

    fit(
        objective,
        (part,),
        phase,
        single_process(batch_size),
        batches,
        torch.Generator().manual_seed(seed),
        history=[],
        on_step=lambda step, record: tracking.log_metrics(step, {f"{name}_{key}": x for key, x in record.items()}),
    )


def orders(total: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Indices of `steps` full batches, each epoch in an order of its own."""
    done = 0
    while True:
        for index in torch.randperm(total)[: total // batch_size * batch_size].split(batch_size):
            if done == steps:
                return
            yield index
            done += 1
