"""What trains, on one process or on each of several: wrapped, clipped, stepped, averaged, packed and unpacked.

All that depends on how parameters lie on processes is in this class, whose replicas are DistributedDataParallel's, and
in shards.py, whose shards are FSDP's.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from un2clip import devices
from un2clip.config import lookup
from un2clip.errors import UserError
from un2clip.training.config import ComputeConfig, PhaseConfig, rate
from un2clip.training.lora import add_lora, merge_lora


class Replicas:
    """The parts of an objective that one phase trains.

    Everything else is frozen. Freezing is requires_grad, never no_grad: gradients flow through a frozen generator to
    the encoder.

    Args:
        objective: with `parts`, `prepare` and `after_step`, as methods.objective.Objective has them.
        trains: names of parts.
        seed: of what begins from scratch: low-rank updates.

    Raises:
        UserError: the objective has no such part, or the numbers no rate for it.
    """

    def __init__(
        self, objective: Any, trains: Sequence[str], phase: PhaseConfig, compute: ComputeConfig, seed: int
    ) -> None:
        self.objective, self.phase = objective, phase
        objective.requires_grad_(False).eval()
        parts = objective.parts()
        self.parts = [lookup(parts, name, "part") for name in trains]
        groups: list[dict[str, Any]] = []
        for name, part in zip(trains, self.parts, strict=True):
            groups += _groups(name, part, phase, seed)
        objective.prepare(
            tuple(trains),
            frozen=torch.bfloat16 if compute.frozen == "bf16" else torch.float32,
            checkpointing=compute.gradient_checkpointing,
            channels_last=compute.channels_last,
            compiled=compute.compile,
        )
        self.parallel = self.spread(groups, compute)
        self.trained: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        if phase.optimizer == "adamw":
            betas = (phase.betas[0], phase.betas[1])
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=phase.momentum)
        self.rates = [group["lr"] for group in groups]
        self.averages = [parameter.detach().clone() for parameter in self.trained] if phase.ema_decay else []

    def spread(self, groups: list[dict[str, Any]], compute: ComputeConfig) -> Any:
        """What is called in the objective's place; `groups` get the parameters that it holds."""
        if devices.world_size() == 1:
            return self.objective
        # a head that this objective does not read gets no gradient, which is no mistake
        return DistributedDataParallel(self.objective, gradient_as_bucket_view=True, find_unused_parameters=True)

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.parallel(*arguments, **named)
        return terms

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around one of several backward passes of a step: gradients cross processes in the last one."""
        return nullcontext() if last or self.parallel is self.objective else self.parallel.no_sync()

    def clip(self) -> float:
        """Clip the gradient; its norm before."""
        return float(nn.utils.clip_grad_norm_(self.trained, self.phase.clip_grad_norm))

    def step(self, step: int) -> None:
        """Move the parameters by their gradients."""
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate(step, self.phase)
        self.optimizer.step()
        self.objective.after_step()
        if self.averages:
            get_ema_multi_avg_fn(self.phase.ema_decay)(self.averages, self.trained, step)

    def take_averages(self) -> None:
        """Let the averages be the result, where there are some."""
        for parameter, average in zip(self.trained, self.averages, strict=bool(self.averages)):
            parameter.data.copy_(average)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Merge low-rank updates and freeze everything, after an error too: the last good weights are kept then."""
        for part in self.parts:
            merge_lora(part)
        self.objective.requires_grad_(False).eval()

    def pack(self) -> dict[str, Tensor]:
        """All that the phase needs to go on, as named tensors."""
        tensors: dict[str, Tensor] = {}
        for name, values in (("parameter", self.trained), ("average", self.averages)):
            tensors |= {f"{name}.{i}": value for i, value in enumerate(values)}
        for i, parameter in enumerate(self.trained):
            state = self.optimizer.state[parameter]
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items() if value is not None}
        return tensors

    @torch.no_grad()
    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `pack` took, in place."""
        for name, values in (("parameter", self.trained), ("average", self.averages)):
            for i, value in enumerate(values):
                value.copy_(tensors[f"{name}.{i}"])
        for i, parameter in enumerate(self.trained):
            start = f"optimizer.{i}."
            state = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            self.optimizer.state[parameter] = {name: value.to(parameter.device) for name, value in state.items()}


def _groups(name: str, part: nn.Module, phase: PhaseConfig, seed: int) -> list[dict[str, Any]]:
    """The parameter groups of one part: what decays, and the rest."""
    lr = lookup(phase.lr, name, "rate of part")
    part.train()
    if name in phase.lora:
        parameters = add_lora(part, phase.lora[name], seed)
        if not parameters:
            raise UserError(
                f"{type(part).__name__} has no linear or attention layer, which low-rank updates are for; take "
                f"`{name}` out of the phase's lora, and its own weights train"
            )
    else:
        parameters = list(part.requires_grad_(True).parameters())
    decaying = [each for each in parameters if each.ndim >= 2 or phase.decays == "all"]
    others = [each for each in parameters if not (each.ndim >= 2 or phase.decays == "all")]
    groups = [{"params": decaying, "lr": lr, "weight_decay": phase.weight_decay}]
    return groups + ([{"params": others, "lr": lr, "weight_decay": 0.0}] if others else [])
