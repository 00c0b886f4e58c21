"""The loop: encode, noise, predict, loss, backward, in reading order. Every method of the table goes through it.

It runs in one process or in many (DistributedDataParallel). The random numbers of a step are drawn for its whole
batch in every process, which takes its own rows of them: so their number changes nothing but rounding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from un2clip import devices
from un2clip.decoders import Generator
from un2clip.errors import Stopped, UserError
from un2clip.methods.conditions import new_projector
from un2clip.methods.objective import Losses, sample_noise
from un2clip.methods.table import Method
from un2clip.training import distributed
from un2clip.training.checkpoints import Checkpoints, Interruption, Saved, pack, unpack
from un2clip.training.config import ComputeConfig, PhaseConfig, rate
from un2clip.training.progress import Progress, Record


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A local batch: what this process has of one step's batch, on its device.

    Attributes:
        keys: the samples' names, for messages.
        pixel_values: (b, 3, H, W).
        latents: (b, C, h, w), scaled.
        valid: (b,) bool; a sample that could not be read does not count.
    """

    keys: list[str]
    pixel_values: Tensor
    latents: Tensor
    valid: Tensor


def fit(
    model: CLIP,
    generator: Generator,
    method: Method,
    training: PhaseConfig,
    running: ComputeConfig,
    batches: Callable[[int], Iterator[Batch]],
    rng: torch.Generator,
    history: list[Record],
    *,
    captions: Tensor | None = None,
    on_step: Callable[[int, Record], None] = lambda step, record: None,
    checkpoints: Checkpoints | None = None,
    saved: Saved | None = None,
) -> None:
    """Train what the method says, in place.

    Args:
        model: the CLIP whose image tower is the encoder; its text tower is never touched.
        batches: step -> the local batch of that step, and of every one after it.
        rng: source of timesteps and noise, in the same state in every process.
        history: gets one record a step: step, loss, diffusion_loss, anchor, captions (where there are any), grad_norm,
            cosine (of the embedding to the reference's), corrupt (samples so far). A step none of whose samples
            could be read leaves none, and changes nothing.
        captions: (K, D), of anchors.embed_bank, for a method with the caption-KL anchor.
        on_step: called with each step's number, its record, and images_per_s and memory_gib.
        checkpoints: where the state is kept.
        saved: a state to go on from.

    Raises:
        UserError: the loss is not finite, or a setting is outside the generator's range. The weights are
            then those of the last step that was finite.
        Stopped: a signal asked for it; the state is in `checkpoints`.
    """
    timesteps = _check_ranges(training, generator)
    device = generator.mean.device
    projector = new_projector(method.projector, generator.embed_dim, rng.initial_seed()).to(device)
    groups = _parameter_groups(model, projector, generator, method, training)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in groups]
    losses = Losses(model.visual, projector, generator, captions, trains_encoder="encoder" in method.trains)
    averages = [parameter.detach().clone() for parameter in trained] if training.ema_decay else []
    noise_level = None if method.noise_level == "uniform" else training.noise_level
    assert (captions is not None) == ("captions" in method.anchors), "a bank of captions is for methods that ask for it"
    anchor_weight = training.anchor_weight if "embedding" in method.anchors else 0.0

    start = 0
    if saved is not None:
        start = saved.step
        unpack(saved.tensors, trained, averages, optimizer, rng)
        history[:] = saved.history
    _check_together(start, device)
    corrupt = int(history[-1]["corrupt"]) if history else 0
    parallel = _prepare(losses, running, method)
    local = batches(start)
    with Interruption() as interruption, Progress(training.steps, start, device, " + ".join(method.trains)) as progress:
        for step in range(start, training.steps):
            batch = next(local)
            b = len(batch.keys)
            rank, world = devices.rank(), devices.world_size()
            valid, stop = distributed.summed([float(batch.valid.sum()), float(interruption.wanted)], device)
            noise_sample = sample_noise(
                generator,
                (b * world, *batch.latents.shape[1:]),
                rng,
                timesteps=timesteps,
                timesteps_drawn=training.timesteps_drawn,
                noise_level=noise_level,
                condition_dropout=training.condition_dropout,
            ).narrow(slice(rank * b, rank * b + b))
            corrupt += b * world - int(valid)
            optimizer.zero_grad(set_to_none=True)
            sums = torch.zeros(4, dtype=torch.float64, device=device)
            for part in running.microbatches(b):
                last = part.stop >= b
                waits = nullcontext() if last or isinstance(parallel, Losses) else parallel.no_sync()
                with waits, running.autocast(device):
                    each = parallel(batch.pixel_values[part], batch.latents[part], noise_sample.narrow(part).to(device))
                    rec, anchor, caption_kl, _ = each = [torch.where(batch.valid[part], value, 0.0) for value in each]
                    # every process has the mean over the whole batch for its aim: DistributedDataParallel averages
                    loss = rec + anchor_weight * anchor + training.caption_weight * caption_kl
                    loss = loss.sum() * (world / max(valid, 1.0))
                    loss.backward()
                sums += torch.stack([value.detach().sum() for value in each]).double()
            if valid:
                diffusion, distance, divergence, cosine = (
                    value / valid for value in distributed.summed(sums.tolist(), device)
                )
                record = {
                    "step": step,
                    "loss": diffusion + anchor_weight * distance + training.caption_weight * divergence,
                    "diffusion_loss": diffusion,
                    "anchor": distance,
                    **({} if captions is None else {"captions": divergence}),
                    "grad_norm": nn.utils.clip_grad_norm_(trained, training.clip_grad_norm).item(),
                    "cosine": cosine,
                    "corrupt": corrupt,
                }
                _check_finite(record, batch.keys)
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * rate(step, training.steps, training.warmup_steps, training.decay)
                optimizer.step()
                if averages:
                    get_ema_multi_avg_fn(training.ema_decay)(averages, trained, step)
                history.append(record)
                on_step(step, record | progress.update(record, samples=int(valid)))
            if checkpoints is not None and rank == 0 and (stop or (step + 1) % running.checkpoint_every == 0):
                checkpoints.save(step + 1, pack(trained, averages, optimizer, rng), history)
            if stop:
                raise Stopped(f"stopped by a signal after {step + 1} of {training.steps} steps")
    for parameter, average in zip(trained, averages, strict=bool(averages)):
        parameter.data.copy_(average)
    model.visual.requires_grad_(False).eval()
    generator.requires_grad_(False).eval()


def _prepare(losses: Losses, running: ComputeConfig, method: Method) -> Losses | DistributedDataParallel:
    """Make the parts lighter as `running` says, and wrap them for several processes."""
    frozen = torch.bfloat16 if running.frozen == "bf16" else torch.float32
    losses.generator.prepare(
        dtype=torch.float32 if "decoder" in method.trains else frozen,
        checkpointing=running.gradient_checkpointing,
        channels_last=running.channels_last,
        compiled=running.compile,
    )
    losses.visual.set_grad_checkpointing(running.gradient_checkpointing)  # type: ignore[operator]
    if losses.trains_encoder:
        losses.reference.to(frozen)
    if running.compile:
        losses.visual.compile()
    if devices.world_size() == 1:
        return losses
    return DistributedDataParallel(losses, gradient_as_bucket_view=True)


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


def _parameter_groups(
    model: CLIP, projector: nn.Module, generator: Generator, method: Method, training: PhaseConfig
) -> list[dict[str, Any]]:
    """Freeze everything, then free what the method trains; biases and norms do not decay.

    Freezing is requires_grad, never no_grad: gradients flow through a frozen generator to the encoder.
    """
    model.requires_grad_(False).eval()
    generator.requires_grad_(False).eval()
    parts = {
        "encoder": (model.visual, training.encoder_lr),
        "projector": (projector, training.encoder_lr),
        "decoder": (generator.unet, training.decoder_lr),
    }
    groups: list[dict[str, Any]] = []
    for part in method.trains:
        module, lr = parts[part]
        parameters = list(module.requires_grad_(True).train().parameters())
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        others = [parameter for parameter in parameters if parameter.ndim < 2]
        groups.append({"params": matrices, "lr": lr, "weight_decay": training.weight_decay})
        groups.append({"params": others, "lr": lr, "weight_decay": 0.0})
    return groups


def _check_ranges(training: PhaseConfig, generator: Generator) -> tuple[int, int]:
    low, high = training.timesteps
    if not 0 <= low <= high < generator.num_timesteps:
        raise UserError(f"timesteps must lie within 0 and {generator.num_timesteps - 1}, got {low} to {high}")
    if not 0 <= training.noise_level < generator.num_noise_levels:
        raise UserError(f"noise_level must be 0 to {generator.num_noise_levels - 1}, got {training.noise_level}")
    return low, high
