"""The loop: encode, noise, predict, loss, backward, in reading order. Every method of the table goes through it."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from un2clip.config import UserError, at_least_one
from un2clip.decoder import Generator
from un2clip.methods import Method
from un2clip.objective import anchor_distance, diffusion_loss, draw

Decay = Literal["constant", "cosine"]
Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one phase trains.

    Attributes:
        steps: optimiser steps.
        encoder_lr, decoder_lr: learning rates (AdamW) of the parts that the method trains.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: steps over which the rate rises linearly; it stays constant afterwards or decays.
        decay: what the rate does after the warm-up: constant, or a cosine down to zero.
        clip_grad_norm: the gradient's norm is clipped to this.
        anchor_weight: lambda, for methods that are anchored.
        timesteps: lowest and highest timestep drawn, both included.
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
    anchor_weight: float
    timesteps: tuple[int, ...]
    noise_level: int
    condition_dropout: float

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        for name in ("encoder_lr", "decoder_lr", "weight_decay", "warmup_steps", "clip_grad_norm", "anchor_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if len(self.timesteps) != 2:
            raise ValueError(f"timesteps must be the lowest and the highest, got {list(self.timesteps)}")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be a probability between 0 and 1, got {self.condition_dropout}")


def fit(
    model: CLIP,
    generator: Generator,
    method: Method,
    training: Training,
    batches: Iterator[tuple[list[str], Tensor, Tensor]],
    rng: torch.Generator,
    log: Callable[[int, Record], None],
) -> None:
    """Train what the method says, in place.

    Args:
        model: the CLIP whose image tower is the encoder; its text tower is never touched.
        batches: keys, pixel_values (B, 3, H, W) and latents (B, C, h, w).
        rng: source of timesteps and noise.
        log: called after each step with its number and its record: step, loss, diffusion_loss, anchor, grad_norm,
            cosine (of the embedding to the reference's).

    Raises:
        UserError: the loss is not finite, or a setting is outside the generator's range. The weights are
            then those of the last step that was finite.
    """
    generator.check_fits(model.visual.output_dim)
    timesteps = _check_ranges(training, generator)
    reference = copy.deepcopy(model.visual).requires_grad_(False).eval()
    groups = _parameter_groups(model, generator, method, training)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = rate_schedule(optimizer, training.steps, training.warmup_steps, training.decay)
    noise_level = None if method.noise_level == "uniform" else training.noise_level

    progress = tqdm(range(training.steps), unit="step", mininterval=1, desc=" + ".join(method.trains))
    for step in progress:
        keys, pixel_values, latents = next(batches)
        with torch.set_grad_enabled("encoder" in method.trains):
            image_embeds = model.visual(pixel_values)
        with torch.no_grad():
            reference_embeds = reference(pixel_values) if "encoder" in method.trains else image_embeds
        draws = draw(
            generator,
            latents,
            rng,
            timesteps=timesteps,
            noise_level=noise_level,
            condition_dropout=training.condition_dropout,
        )
        rec = diffusion_loss(generator, latents, image_embeds, draws).mean()
        anchor = anchor_distance(generator, image_embeds, reference_embeds).mean()
        loss = rec + training.anchor_weight * anchor if method.anchored else rec

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(trained, training.clip_grad_norm)
        if not math.isfinite(loss.item()) or not math.isfinite(grad_norm.item()):
            raise UserError(
                f"the loss is {loss.item()} at step {step} (samples {', '.join(keys[:4])}, ...); "
                "lower the learning rate, or look at these images"
            )
        optimizer.step()
        schedule.step()

        cosine = cosine_similarity(image_embeds.detach(), reference_embeds).mean()
        record = {
            "step": step,
            "loss": loss.item(),
            "diffusion_loss": rec.item(),
            "anchor": anchor.item(),
            "grad_norm": grad_norm.item(),
            "cosine": cosine.item(),
        }
        log(step, record)
        progress.set_postfix({name: f"{record[name]:.4f}" for name in ("loss", "grad_norm", "cosine")}, refresh=False)
    model.visual.requires_grad_(False).eval()
    generator.requires_grad_(False).eval()


def _parameter_groups(model: CLIP, generator: Generator, method: Method, training: Training) -> list[dict[str, Any]]:
    """Freeze everything, then free what the method trains; biases and norms do not decay.

    Freezing is requires_grad, never no_grad: gradients flow through a frozen generator to the encoder.
    """
    model.requires_grad_(False).eval()
    generator.requires_grad_(False).eval()
    parts = {"encoder": (model.visual, training.encoder_lr), "decoder": (generator.unet, training.decoder_lr)}
    groups: list[dict[str, Any]] = []
    for part in method.trains:
        module, lr = parts[part]
        parameters = list(module.requires_grad_(True).train().parameters())
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        others = [parameter for parameter in parameters if parameter.ndim < 2]
        groups.append({"params": matrices, "lr": lr, "weight_decay": training.weight_decay})
        groups.append({"params": others, "lr": lr, "weight_decay": 0.0})
    return groups


def rate_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, decay: Decay) -> LambdaLR:
    """The rate rises linearly over the warm-up, then stays, or falls to zero as half a cosine."""

    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return LambdaLR(optimizer, rate)


def _check_ranges(training: Training, generator: Generator) -> tuple[int, int]:
    low, high = training.timesteps
    if not 0 <= low <= high < generator.num_timesteps:
        raise UserError(f"timesteps must lie within 0 and {generator.num_timesteps - 1}, got {low} to {high}")
    if not 0 <= training.noise_level < generator.num_noise_levels:
        raise UserError(f"noise_level must be 0 to {generator.num_noise_levels - 1}, got {training.noise_level}")
    return low, high
