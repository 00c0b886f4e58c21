"""A training in numbers: what a phase learns (`PhaseConfig`), and how it is computed (`ComputeConfig`)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from un2clip.config import at_least
from un2clip.methods.objective import Timesteps

Decay = Literal["constant", "cosine"]
#: The fields of `ComputeConfig` that change the result by more than rounding.
DECIDING = ("precision", "frozen")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """How one phase trains.

    Attributes:
        steps: optimiser steps.
        encoder_lr, decoder_lr: learning rates (AdamW) of the parts that the method trains.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: steps over which the rate rises linearly; it stays constant afterwards or decays.
        decay: what the rate does after the warm-up: constant, or a cosine down to zero.
        clip_grad_norm: the gradient's norm is clipped to this.
        ema_decay: of the moving average of the weights, which is the result then; 0 for none.
        anchor_weight: lambda of the distance to the reference's embedding, for methods with that anchor.
        caption_weight: the same of the divergence over captions.
        timesteps: lowest and highest timestep drawn, both included.
        timesteps_drawn: how they are drawn for a batch; methods/objective.py: sample_noise.
        noise_level: of the embedding's noise augmentation, where the method does not draw it.
        condition_dropout: probability of dropping a sample's condition.
    """

    steps: int
    encoder_lr: float
    decoder_lr: float
    weight_decay: float
    warmup_steps: int
    decay: Decay
    clip_grad_norm: float
    ema_decay: float
    anchor_weight: float
    caption_weight: float
    timesteps: tuple[int, ...]
    timesteps_drawn: Timesteps
    noise_level: int
    condition_dropout: float

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        at_least(self, 0, "encoder_lr", "decoder_lr", "weight_decay", "warmup_steps")
        at_least(self, 0, "clip_grad_norm", "anchor_weight", "caption_weight")
        if len(self.timesteps) != 2:
            raise ValueError(f"timesteps must be the lowest and the highest, got {list(self.timesteps)}")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be a probability between 0 and 1, got {self.condition_dropout}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")


def rate(step: int, steps: int, warmup_steps: int, decay: Decay) -> float:
    """Factor of the learning rate: a linear rise over the warm-up, then constant, or half a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def rate_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, decay: Decay) -> LambdaLR:
    """`rate` as a scheduler, for the loops of the toy backbones."""
    return LambdaLR(optimizer, lambda step: rate(step, steps, warmup_steps, decay))


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a training is computed.

    Attributes:
        processes: on this machine, one a GPU; 0 for as many as GPUs are visible. torchrun's own number goes before it.
        workers: processes that read images, beside each of them; 0 for none.
        max_per_device: images in one forward; a process whose local batch is larger accumulates gradients.
        precision: of the arithmetic; with bf16, what trains is held in fp32 all the same.
        frozen: precision in which the weights that do not train are held.
        gradient_checkpointing: compute activations twice instead of keeping them.
        channels_last: memory format of the generator's convolutions.
        compile: torch.compile for encoder and U-Net.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: how many are kept.
    """

    processes: int
    workers: int
    max_per_device: int
    precision: Literal["fp32", "bf16"]
    frozen: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    channels_last: bool
    compile: bool
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        at_least(self, 1, "max_per_device", "checkpoint_every", "keep_checkpoints")
        at_least(self, 0, "processes", "workers")
        if self.frozen == "bf16" and self.precision != "bf16":
            raise ValueError("frozen must be fp32 where precision is fp32, got bf16")

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def processes_here(self, device: str) -> int:
        """How many processes train on this machine, with `device` of params.yaml; it does not touch a GPU."""
        return self.processes or max(1, torch.cuda.device_count() if device != "cpu" else 1)

    def microbatches(self, size: int) -> Iterator[slice]:
        """The microbatches of a local batch: parts of at most `max_per_device`."""
        step = self.max_per_device
        return (slice(start, min(start + step, size)) for start in range(0, size, step))


def single_process(batch_size: int) -> ComputeConfig:
    """One process, fp32, the whole batch at once: how toy backbones are trained."""
    return ComputeConfig(
        processes=1,
        workers=0,
        max_per_device=batch_size,
        precision="fp32",
        frozen="fp32",
        gradient_checkpointing=False,
        channels_last=False,
        compile=False,
        checkpoint_every=1,
        keep_checkpoints=1,
    )
