"""A training in numbers: what a phase learns (`PhaseConfig`), and how it is computed (`ComputeConfig`)."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from un2clip.config import at_least
from un2clip.decoders.decoder import NoiseConfig
from un2clip.devices import Precision, autocast, multiplying, processes_here
from un2clip.errors import UserError

Decay = Literal["constant", "cosine"]
#: The fields of `ComputeConfig` that change the result by more than rounding.
DECIDING = ("precision", "frozen")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates in the place of a part's matrices (arXiv 2106.09685): W + alpha / rank * B A.

    Attributes:
        rank: of the updates.
        alpha: their scale is alpha / rank.
    """

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """How one phase trains.

    Attributes:
        steps: optimiser steps.
        optimizer: adamw, or sgd with `momentum`.
        betas: AdamW's.
        momentum: SGD's.
        lr: part -> learning rate.
        weight_decay: on the parameters that `decays` names.
        decays: matrices (not biases and norms) or all.
        warmup_steps: steps over which the rate rises linearly; it stays constant afterwards or decays.
        decay: what the rate does after the warm-up: constant, or a cosine down to zero.
        clip_grad_norm: the gradient's norm is clipped to this.
        ema_decay: of the moving average of the weights, which is the result then; 0 for none.
        image_px: side of the images that the decoder is held against; 0 for its own. Others cannot be cached. A decoder
            of pixels draws what the encoder reads, so the encoder's images are of this side too.
        noise_samples: noise samples of each image in a step; the loss is their mean.
        crop: lowest and highest share of an image's area that a random crop keeps; 1 and 1 for none.
        lora: part -> its low-rank updates; a part that is not named trains its own weights.
        noise: what the decoder draws.
    """

    steps: int
    optimizer: Literal["adamw", "sgd"]
    betas: tuple[float, ...]
    momentum: float
    lr: dict[str, float]
    weight_decay: float
    decays: Literal["matrices", "all"]
    warmup_steps: int
    decay: Decay
    clip_grad_norm: float
    ema_decay: float
    image_px: int
    noise_samples: int
    crop: tuple[float, ...]
    lora: dict[str, LoraConfig]
    noise: NoiseConfig

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "noise_samples")
        at_least(self, 0, "image_px", "weight_decay", "warmup_steps", "clip_grad_norm", "momentum")
        for part, lr in self.lr.items():
            if lr < 0:
                raise ValueError(f"lr.{part} must be at least 0, got {lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {list(self.betas)}")
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop must be a lowest and a highest share above 0 and up to 1, got {list(self.crop)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")


def rate(step: int, phase: PhaseConfig) -> float:
    """Factor of the learning rate: a linear rise over the warm-up, then constant, or half a cosine down to zero."""
    if step < phase.warmup_steps:
        return (step + 1) / phase.warmup_steps
    if phase.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)))


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a training is computed.

    Attributes:
        processes: on this machine, one a GPU; 0 for as many as GPUs are visible. torchrun's own number goes before it.
        shard: whether each of several processes holds its share of the weights and moments, and not all of them.
        workers: processes that read images, beside each of them; 0 for none.
        max_per_device: images in one forward; a process whose local batch is larger accumulates gradients.
        precision: of the arithmetic. tf32: a GPU rounds what it multiplies to 10 bits of mantissa. bf16: autocast; what
            trains is held in fp32 all the same.
        frozen: precision in which the weights that do not train are held.
        gradient_checkpointing: compute activations twice instead of keeping them.
        channels_last: memory format of the generator's convolutions.
        compile: torch.compile for encoder and U-Net.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: how many are kept.
        refer_every: steps between two looks at the reference's embedding, for the log alone; 0 for none.
    """

    processes: int
    shard: bool
    workers: int
    max_per_device: int
    precision: Precision
    frozen: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    channels_last: bool
    compile: bool
    checkpoint_every: int
    keep_checkpoints: int
    refer_every: int

    def __post_init__(self) -> None:
        at_least(self, 1, "max_per_device", "checkpoint_every", "keep_checkpoints")
        at_least(self, 0, "processes", "workers", "refer_every")
        if self.frozen == "bf16" and self.precision != "bf16":
            raise ValueError(f"frozen must be fp32 where precision is {self.precision}, got bf16")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The arithmetic of a step."""
        return autocast(device, self.precision)

    def multiplying(self) -> AbstractContextManager[None]:
        """Around a training: TF32 where it is asked for."""
        return multiplying(self.precision)

    def processes_here(self, device: str) -> int:
        """How many processes train on this machine: devices.processes_here."""
        return processes_here(self.processes, device)

    def microbatches(self, size: int, group: int = 1) -> Iterator[slice]:
        """The microbatches of a local batch: parts of at most `max_per_device`, cut between contrast groups only."""
        step = self.max_per_device - self.max_per_device % group
        if not step or size % group:
            raise UserError(
                f"a contrast group of {group} samples must fit into max_per_device ({self.max_per_device}), and a "
                f"local batch ({size}) must hold whole groups"
            )
        return (slice(start, min(start + step, size)) for start in range(0, size, step))


def single_process(batch_size: int) -> ComputeConfig:
    """One process, fp32, the whole batch at once: how toy backbones are trained."""
    return ComputeConfig(
        processes=1,
        shard=False,
        workers=0,
        max_per_device=batch_size,
        precision="fp32",
        frozen="fp32",
        gradient_checkpointing=False,
        channels_last=False,
        compile=False,
        checkpoint_every=1,
        keep_checkpoints=1,
        refer_every=0,
    )
