"""Memory of a training step: followed storage by storage while the step runs on the meta device."""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from un2clip.datasets.loader import to_device
from un2clip.methods.flops import META
from un2clip.methods.objective import Reconstruction
from un2clip.training.config import ComputeConfig, PhaseConfig
from un2clip.training.replicas import Replicas

FP32, BF16 = 4, 2  # bytes of a number


class Living(TorchDispatchMode):
    """Bytes of the storages that were made while it is open and still live, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, object] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and id(storage := each.untyped_storage()) not in given | self._known.keys():
                self._known[id(storage)] = weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
                self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        return result

    def _gone(self, known: int, size: int) -> None:
        del self._known[known]
        self.bytes -= size


class _Fused(torch.autograd.Function):
    """The storages of fused attention (arXiv 2205.14135): no matrix of scores, and a number a row beside the result."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, result, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention takes the storages that it takes on a GPU; the meta device would make the matrix of scores.

    The function is exchanged by its name: a mode of torch's is closed while checkpoints compute again.
    """

    def fused(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        return _Fused.apply(query, key, value)

    before = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = before


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training process.

    Attributes:
        held: between two steps: weights of all networks, the optimiser's moments, averages.
        step: beside them at the worst moment of a step: gradients, activations, and what is made in between.
    """

    held: int
    step: int

    @property
    def peak(self) -> int:
        return self.held + self.step


def measure_step(
    objective: Reconstruction,
    trains: Sequence[str],
    image_size: tuple[int, int],
    phase: PhaseConfig,
    compute: ComputeConfig,
    *,
    images: int,
) -> Memory:
    """Memory of one forward and backward pass of some images, and of the optimiser. Anchors are left out.

    The meta device has no autocast. Under bf16 what trains is counted as autocast has it: weights in fp32 and a copy in
    bf16, gradients in fp32, and all activations in bf16.

    Args:
        objective: on the meta device, new: it is made ready as a training makes it.
        compute: precision, frozen and gradient_checkpointing count.
    """
    compute = dataclasses.replace(compute, compile=False)
    objective.anchors, decoder = nn.ModuleDict(), objective.decoder
    decoder.resize(phase.image_px or decoder.image_px)
    replicas = Replicas(objective, trains, phase, compute, 0)
    trained = sum(each.numel() for each in replicas.trained)
    moments = 2 if phase.optimizer == "adamw" else int(phase.momentum > 0)
    held = _size(objective) + FP32 * trained * (moments + bool(replicas.averages))
    besides = 0
    if compute.precision == "bf16":
        for part in replicas.parts:
            part.to(torch.bfloat16)
        besides = BF16 * trained + (FP32 - BF16) * trained  # the copies, and the gradients' other half
    with fused_attention(), Living() as living, torch.device(META):
        batch: dict[str, Any] = {
            "keys": [""] * images,
            "pixel_values": torch.empty(images, 3, *image_size).to(next(replicas.parts[0].parameters()).dtype),
            "images": torch.empty(images, 3, decoder.image_px, decoder.image_px),
        }
        batch["target"] = decoder.target(batch)
        sample = to_device(objective.draw(batch, images, torch.Generator(), phase.noise), META)
        replicas(batch, sample)["loss"].mean().backward()
    return Memory(held=held, step=living.peak + besides)


def _size(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))
