"""`un2clip plan`: what a fine-tuning will take on machines that nobody has paid for yet."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from un2clip.config import build
from un2clip.datasets.ingesting import Ingest
from un2clip.datasets.loader import WHOLE
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.devices import Precision
from un2clip.errors import GIB, UserError
from un2clip.methods.flops import META, Flops, count_step
from un2clip.methods.objective import Reconstruction
from un2clip.methods.table import get_method
from un2clip.planning.machines import Device, read_expected
from un2clip.planning.memory import FP32, Memory, measure_step
from un2clip.planning.published import new_reconstruction
from un2clip.stages.backbones import Backbones
from un2clip.stages.diffusion_loss import DiffusionLoss
from un2clip.stages.finetune_job import Finetune
from un2clip.stages.latents import Latents

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """One phase of a fine-tuning.

    Attributes:
        name: of its numbers.
        images: that it sees.
        flops: by part, of one image with all its noise samples.
        cached: whether it reads latents instead of encoding.
    """

    name: str
    images: int
    flops: dict[str, Flops]
    cached: bool

    def seconds(self, device: Device, precision: Precision, frozen: Precision) -> float:
        """Of one image at the device's full rate. The VAE is not in autocast: it computes as it is held."""
        target = 0.0 if self.cached else self.flops["target"].total / device.rate(frozen)
        rest = sum(part.total for name, part in self.flops.items() if name != "target")
        return target + rest / device.rate(precision)


class Plan:
    """Counts of one overlay; from them hours, memory and disk on any device.

    Args:
        params: all numbers, as `read_params` gives them.
        images: in the corpus; 0: as many as the longest phase sees, which is one epoch of it.

    Raises:
        UserError: the shapes of encoder or generator are not known, or a number does not fit.
    """

    def __init__(self, params: Mapping[str, Any], images: int = 0) -> None:
        self.row = get_method(params["method"])
        self.backbones = build(Backbones, params["backbones"], "backbones")
        self.finetune = build(Finetune, params["finetune"], "finetune")
        self.latents = build(Latents, params["latents"], "latents")
        self.diffusion_loss = build(DiffusionLoss, params["diffusion_loss"], "diffusion_loss")
        self.ingest = build(Ingest, params["ingest"], "ingest")
        self.expected = read_expected()
        self.numbers = self.finetune.phases_of(self.row)
        objective, size = self._new()
        self.latent_shape = objective.decoder.target_shape if isinstance(objective.decoder, LatentDecoder) else None
        self.group, self.phases = objective.group, []
        own = objective.decoder.image_px
        for numbers, named in zip(self.numbers, self.row.phases, strict=True):
            objective.decoder.resize(numbers.image_px or own)
            read = (objective.decoder.image_px,) * 2 if objective.decoder.as_read else size
            flops = count_step(objective, named.trains, read, numbers.noise, images=objective.group)
            cached = bool(self.latent_shape) and self.latents.cache and numbers.crop == WHOLE and not numbers.image_px
            self.phases.append(
                PhaseCost(
                    name=named.numbers,
                    images=numbers.steps * self.finetune.batch_size,
                    flops={
                        name: _each(part, objective.group, 1 if name == "target" else numbers.noise_samples)
                        for name, part in flops.items()
                    },
                    cached=cached,
                )
            )
        self.images = images or max(phase.images for phase in self.phases)
        self.trained = [
            sum(each.numel() for name in named.trains for each in objective.parts()[name].parameters())
            for named in self.row.phases
        ]

    def _new(self) -> tuple[Reconstruction, tuple[int, int]]:
        with META:
            return new_reconstruction(self.backbones, self.finetune, self.row)

    def memory(self, number: int, *, checkpointing: bool, images: int) -> Memory:
        """Of phase `number` with so many images in one forward."""
        objective, size = self._new()
        compute = dataclasses.replace(self.finetune.compute, gradient_checkpointing=checkpointing)
        trains = self.row.phases[number].trains
        if objective.decoder.as_read:
            size = (self.numbers[number].image_px or size[0],) * 2
        return measure_step(objective, trains, size, self.numbers[number], compute, images=images)

    def stages(self, device: Device, gpus: int) -> Iterator[tuple[str, float, int, str]]:
        """(name, hours at the full rate, GPUs that it uses, remark) of each stage whose arithmetic counts."""
        fp32, compute = device.rate("fp32"), self.finetune.compute
        first = self.phases[0].flops
        if self.latent_shape and self.latents.cache:
            used = min(gpus, self.latents.processes or gpus)
            rate, precision = device.rate(self.latents.precision), self.latents.precision
            yield "latents", self.images * first["target"].total / rate / used / HOUR, used, precision
        for phase in self.phases:
            seconds = phase.images * phase.seconds(device, compute.precision, compute.frozen) / gpus
            yield f"finetune ({phase.name})", seconds / HOUR, gpus, compute.precision
        if self.row.decoder == "unclip":
            loss = self.diffusion_loss
            drawn = 2 * loss.bins * first["decoder"].forward + 2 * first["encoder"].forward
            encoded = 0 if self.latents.cache else first["target"].total
            yield "diffusion_loss", loss.images * (drawn + encoded) / fp32 / HOUR, 1, "fp32, on one GPU"

    def read_per_s(self, gpus: int) -> float:
        """Images that the workers of all processes decode in a second; the process itself where there are none."""
        megapixels = self.ingest.short_side_px**2 * self.expected.aspect / 1e6
        seconds = self.expected.read_s_per_image + self.expected.read_s_per_megapixel * megapixels
        return gpus * max(1, self.finetune.compute.workers) / seconds

    def disk(self) -> dict[str, float]:
        """Bytes of shards, latents and the checkpoints of a training."""
        expected, compute = self.expected, self.finetune.compute
        shards = self.images * self.ingest.short_side_px**2 * expected.aspect * expected.jpeg_bytes_per_pixel
        made = self.latent_shape is not None and self.latents.cache
        latents = self.images * math.prod(self.latent_shape or ()) * BYTES[self.latents.dtype] if made else 0
        states = [
            FP32 * trained * (1 + (2 if numbers.optimizer == "adamw" else 1) + bool(numbers.ema_decay))
            for trained, numbers in zip(self.trained, self.numbers, strict=True)
        ]
        # one more than is kept is there while the newest is written
        return {"shards": shards, "latents": latents, "checkpoints": (compute.keep_checkpoints + 1) * max(states)}


def _each(part: Flops, images: int, times: int) -> Flops:
    """Of one image, which goes through the part so many times: all but the target once for each noise sample."""
    return Flops(forward=part.forward * times // images, backward=part.backward * times // images)


def describe(plan: Plan, device: Device, gpus: int, price: float | None) -> str:
    """The plan as text: operations, images/s, hours, memory, disk, and what limits.

    Raises:
        UserError: the batch cannot be dealt out to so many GPUs.
    """
    batch, compute, (low, high) = plan.finetune.batch_size, plan.finetune.compute, plan.expected.share
    if gpus < 1 or batch % gpus:
        raise UserError(f"finetune.batch_size ({batch}) must be a multiple of the GPUs, got {gpus}")
    lines = [f"| phase | part | forward, GFLOP an image | backward |\n|{'---|' * 4}"]
    for phase in plan.phases:
        lines += [
            f"| {phase.name} | {name}{' (from the cache)' if name == 'target' and phase.cached else ''} "
            f"| {part.forward / 1e9:.1f} | {part.backward / 1e9:.1f} |"
            for name, part in phase.flops.items()
            if part.total
        ]
    lines += ["", f"| stage | GPUs | hours at least | hours expected | remark |\n|{'---|' * 5}"]
    gpu_hours = [0.0, 0.0]
    for name, hours, used, remark in plan.stages(device, gpus):
        lines.append(f"| {name} | {used} | {hours:.2g} | {hours / high:.2g} to {hours / low:.2g} | {remark} |")
        gpu_hours = [gpu_hours[0] + used * hours / high, gpu_hours[1] + used * hours / low]
    lines += ["", "ingest, evaluate and reconstruct are not counted: they depend on reading, and on which benchmarks."]
    if price is not None:
        lines.append(f"cost: {price * gpu_hours[0]:,.0f} to {price * gpu_hours[1]:,.0f}, at {price:g} a GPU and hour")
    limits = []
    lines += ["", f"| phase | images/s at most | expected | readers give |\n|{'---|' * 4}"]
    for phase in plan.phases:
        most, read = gpus / phase.seconds(device, compute.precision, compute.frozen), plan.read_per_s(gpus)
        lines.append(f"| {phase.name} | {most:.3g} | {most * low:.3g} to {most * high:.3g} | {read:.3g} |")
        limits += ["arithmetic"] * (read > most * low) + ["reading"] * (read < most * high)
    lines += ["", *_memory(plan, device, gpus)]
    lines += ["", "disk: " + ", ".join(f"{name} {size / 1e9:.3g} GB" for name, size in plan.disk().items())]
    lines.append(f"limited by: {', '.join(dict.fromkeys(limits))}")
    return "\n".join(lines)


def _memory(plan: Plan, device: Device, gpus: int) -> Iterator[str]:
    """Memory of a GPU with and without gradient checkpointing, and how many images fit into one forward."""
    usable = 1e9 * (device.memory_gb - plan.expected.reserved_gb)
    compute, local = plan.finetune.compute, plan.finetune.batch_size // gpus
    group = plan.group
    yield f"| phase | checkpointing | GiB held | GiB an image | images that fit | as set |\n|{'---|' * 6}"
    for number, phase in enumerate(plan.phases):
        for checkpointing in (False, True):
            one, two = (plan.memory(number, checkpointing=checkpointing, images=n * group) for n in (1, 2))
            each = (two.step - one.step) / group
            base = one.peak - each * group
            fit = max(0, math.floor((usable - base) / each) // group * group)
            now, remark = min(local, compute.max_per_device), ""
            if checkpointing == compute.gradient_checkpointing:
                needed = (base + each * now) / GIB
                remark = f"{now}: {needed:.1f} GiB of {usable / GIB:.1f}" + ("" if now <= fit else ", does not fit")
            yield (
                f"| {phase.name} | {'yes' if checkpointing else 'no'} | {one.held / GIB:.2f} | {each / GIB:.3f} "
                f"| {min(fit, local)} of {local} | {remark} |"
            )
