"""The loop: noise, terms, backward, step, in reading order. It knows no method: an objective gives what it trains.

It runs in one process or in many. The random numbers of a step are drawn for its whole batch in every process, which
takes its own part of them: so the number of processes changes nothing but rounding.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from un2clip import devices
from un2clip.datasets.loader import Batch, narrow, to_device
from un2clip.errors import Stopped, UserError
from un2clip.training import distributed
from un2clip.training.checkpoints import Checkpoints, Interruption, Saved
from un2clip.training.config import ComputeConfig, PhaseConfig
from un2clip.training.progress import Progress, Record
from un2clip.training.replicas import Replicas
from un2clip.training.shards import Shards

MOST_ERROR = 1e-3  # of the loss, relative, in another precision than fp32


class Objective(Protocol):
    """What the loop asks of an objective; methods/objective.py says what each gives."""

    group: int

    def parts(self) -> dict[str, nn.Module]: ...
    def draw(self, batch: Batch, n: int, rng: torch.Generator, noise: Any) -> dict[str, Tensor]: ...
    def weights(self, batch: Batch) -> Tensor: ...
    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Tensor]: ...


def fit(
    objective: Objective,
    trains: Sequence[str],
    phase: PhaseConfig,
    compute: ComputeConfig,
    batches: Callable[[int], Iterator[Batch]],
    rng: torch.Generator,
    history: list[Record],
    *,
    done: int = 0,
    on_step: Callable[[int, Record], None] = lambda step, record: None,
    on_read: Callable[[int, int], None] = lambda corrupt, read: None,
    checkpoints: Checkpoints | None = None,
    saved: Saved | None = None,
    flops: Callable[[], float] = lambda: 0.0,
) -> None:
    """Train one phase, in place.

    Args:
        trains: names of the objective's parts that move.
        batches: step -> this process's local batch of that step, and of every one after it, on its device.
        rng: source of the noise samples, in the same state in every process.
        history: gets one record a step: step, the objective's terms (loss among them), grad_norm, corrupt (samples so
            far). A step none of whose samples could be read leaves none, and changes nothing.
        done: steps of the phases before, from which this one's are numbered.
        on_step: called with each step's number, its record, and what `Progress.update` measures.
        on_read: called with the corrupt samples so far and with all that were read, before a step is taken.
        checkpoints: where the state is kept.
        saved: a state to go on from.
        flops: counts the operations of one sample in a step, for the bar; 0 where that cannot be counted.

    Raises:
        UserError: the loss is not finite, or a number does not fit. The weights are then those of the last step that
            was finite.
        Stopped: a signal asked for it; the state is in `checkpoints`.
    """
    if compute.precision != "fp32" and saved is None:
        full = dataclasses.replace(compute, precision="fp32", frozen="fp32")
        exact = first_loss(objective, objective, phase, full, batches, rng)
    kind = Shards if compute.shard and devices.world_size() > 1 else Replicas
    replicas = kind(objective, trains, phase, compute, rng.initial_seed())
    if compute.precision != "fp32" and saved is None:
        _say_error(exact, first_loss(objective, replicas, phase, compute, batches, rng), compute.precision)
    start = 0
    if saved is not None:
        start = saved.step
        replicas.unpack(saved.tensors)
        rng.set_state(saved.tensors["rng"])
        history[:] = saved.history
    corrupt = int(history[-1]["corrupt"]) if history else 0
    local, world = batches(start), devices.world_size()
    device = next(iter(objective.parts()[trains[0]].parameters())).device
    _check_together(start, device)
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    bar = Progress(phase.steps, start, device, " + ".join(trains), flops, dtype)
    with Interruption() as interruption, compute.multiplying(), bar as progress, replicas:
        for step in range(start, phase.steps):
            batch = next(local)
            b, weights = len(batch["keys"]), objective.weights(batch)
            own = [float(weights.sum()), float(batch["valid"].sum()), float(interruption.wanted)]
            total, valid, stop = distributed.summed(own, device)
            corrupt += b * world - int(valid)
            on_read(corrupt, (done + step + 1) * b * world)
            sums: dict[str, Tensor] = {}
            replicas.optimizer.zero_grad(set_to_none=True)
            for number in range(phase.noise_samples):
                noise_sample = narrow(objective.draw(batch, b * world, rng, phase.noise), _own(b))
                for part in compute.microbatches(b, objective.group):
                    last = part.stop >= b and number == phase.noise_samples - 1
                    with replicas.accumulating(last), compute.autocast(device):
                        drawn = to_device(narrow(noise_sample, part), device)
                        terms = replicas(narrow(batch, part), drawn, log=_refers(step, compute))
                        counted = {name: _counted(term, weights[part]) for name, term in terms.items()}
                        # every process has the mean over the whole batch for its aim: replicas' gradients are averaged
                        (counted["loss"] * (world / max(total, 1e-9)) / phase.noise_samples).backward()
                    for name, value in counted.items():
                        sums[name] = value.detach().double() / phase.noise_samples + sums.get(name, 0.0)
            if total:
                totals = distributed.summed(torch.stack(list(sums.values())).tolist(), device)
                record: Record = {"step": done + step}
                record |= {name: value / total for name, value in zip(sums, totals, strict=True)}
                record |= {"grad_norm": replicas.clip(), "corrupt": corrupt}
                _check_finite(record, batch["keys"])
                replicas.step(step)
                history.append(record)
                on_step(done + step, record | progress.update(record, samples=int(valid)))
            if checkpoints is not None and checkpoints.due(step + 1, phase.steps, bool(stop)):
                tensors = replicas.pack() | {"rng": rng.get_state()}  # by all processes: each may hold a share of it
                if devices.rank() == 0:
                    checkpoints.save(step + 1, tensors, history)
            if stop:
                raise Stopped(f"stopped by a signal after {step + 1} of {phase.steps} steps", interruption.number)
        if checkpoints is not None and checkpoints.final:  # a signal in the last step must not be lost on what follows
            (stop,) = distributed.summed([float(interruption.wanted)], device)
            if stop:
                raise Stopped(f"stopped by a signal after {phase.steps} of {phase.steps} steps", interruption.number)
        replicas.take_averages()


@torch.no_grad()
def first_loss(
    objective: Objective,
    forward: Callable[..., dict[str, Tensor]],
    phase: PhaseConfig,
    compute: ComputeConfig,
    batches: Callable[[int], Iterator[Batch]],
    rng: torch.Generator,
) -> float:
    """The loss of the first batch's first microbatch, as it is computed before anything has trained.

    Args:
        forward: the objective, or what is called in its place.
        rng: as of `fit`; it stays as it is.
    """
    batch = next(batches(0))
    b, world = len(batch["keys"]), devices.world_size()
    own = torch.Generator().manual_seed(rng.initial_seed())
    noise_sample = narrow(objective.draw(batch, b * world, own, phase.noise), _own(b))
    part, device = next(compute.microbatches(b, objective.group)), batch["valid"].device
    training = [module for each in objective.parts().values() for module in each.modules() if module.training]
    for module in training:
        module.training = False  # what is dropped at random would be another difference
    with compute.multiplying(), compute.autocast(device):
        term = forward(narrow(batch, part), to_device(narrow(noise_sample, part), device))["loss"]
    for module in training:
        module.training = True
    weights = objective.weights(batch)[part]
    total, weight = distributed.summed([float(_counted(term.double(), weights)), float(weights.sum())], device)
    return total / max(weight, 1e-9)


def _say_error(exact: float, found: float, precision: str) -> None:
    if devices.rank() == 0:
        error = devices.relative_error(torch.tensor(found), torch.tensor(exact))
        worse = "" if error <= MOST_ERROR else f", which is more than {MOST_ERROR:g}: take fp32"
        print(f"the first loss is {found:.6g} in {precision} and {exact:.6g} in fp32: it is {error:.1e} off{worse}")


def _own(b: int) -> slice:
    """This process's part of what was drawn for the whole batch."""
    return slice(devices.rank() * b, devices.rank() * b + b)


def _refers(step: int, compute: ComputeConfig) -> bool:
    return bool(compute.refer_every) and step % compute.refer_every == 0


def _counted(term: Tensor, weights: Tensor) -> Tensor:
    """The sum of a term over samples by their weights; what stands in a corrupt sample's place does not count."""
    return torch.where(weights > 0, term * weights, 0.0).sum()


def _check_together(start: int, device: torch.device) -> None:
    """Raise a UserError unless every process goes on from the same step."""
    world = devices.world_size()
    (total,) = distributed.summed([float(start)], device)
    if total != start * world:
        raise UserError(
            f"{world} processes found different states to go on from; checkpoints must be a folder that all of them see"
        )


def _check_finite(record: Record, keys: list[str]) -> None:
    if not math.isfinite(record["loss"]) or not math.isfinite(record["grad_norm"]):
        raise UserError(
            f"the loss is {record['loss']} at step {record['step']:.0f} (samples {', '.join(keys[:4])}, ...); "
            "lower the learning rate, or look at these images"
        )
