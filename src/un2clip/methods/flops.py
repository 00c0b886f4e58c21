"""Floating-point operations of a training step, counted part by part on the meta device by torch's own counter.

An operation is one multiplication or one addition of a matrix product, a convolution or attention; nothing else counts.
What is computed twice to save memory is not counted twice, as is usual where a share of a device's rate is named.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from un2clip import devices
from un2clip.datasets.loader import to_device
from un2clip.decoders import Cond
from un2clip.decoders.decoder import NoiseConfig
from un2clip.methods.contrast import Contrast
from un2clip.methods.features import Features
from un2clip.methods.objective import Reconstruction

META = torch.device("meta")
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one part for some images.

    Attributes:
        forward: without or with gradient.
        backward: 0 for a part through which no gradient flows.
    """

    forward: int
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward


def counted(function: Callable[[], Result]) -> tuple[Result, int]:
    """What a function of meta tensors gives, and the operations that it takes."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, int(counter.get_total_flops())


def count_step(
    objective: Reconstruction,
    trains: Sequence[str],
    image_size: tuple[int, int],
    noise: NoiseConfig,
    *,
    images: int,
) -> dict[str, Flops]:
    """Operations of one noise sample of some images, by part: what one step computes, accumulation or not.

    Args:
        objective: on the meta device; its requires_grad is set. One that contrasts has the second view's tower and all
            conditions in its decoder's part.
        trains: parts that move; others pass gradient on where a part before them moves.
        image_size: height and width of the encoder's images.

    Returns:
        target (the VAE), encoder, reference, condition, decoder. A part that the row has not takes 0. The distances of
        anchors are left out: a product with a bank of texts is a millionth of the rest.
    """
    for name, part in objective.parts().items():
        part.requires_grad_(name in trains)
    decoder, pixel_values = objective.decoder, torch.empty(images, 3, *image_size, device=META)
    batch: dict[str, Any] = {
        "images": torch.empty(images, 3, decoder.image_px, decoder.image_px, device=META),
        "view": pixel_values,
        "valid": torch.ones(images, dtype=torch.bool, device=META),
        "keys": [""] * images,
    }
    noise_sample = to_device(objective.draw(batch, images, torch.Generator(), noise), META)
    batch["target"], of_target = counted(lambda: decoder.target(batch))
    with torch.set_grad_enabled("encoder" in trains):
        features, of_encoder = counted(lambda: objective.encoder(pixel_values))
    leaf = Features(pooled=_leaf(features.pooled), tokens=_leaf(features.tokens))
    cond, told, of_condition = Cond(), Cond(), 0
    if isinstance(objective, Contrast):
        terms, of_decoder = counted(lambda: objective.held(batch, leaf, noise_sample))
    else:
        cond, of_condition = counted(lambda: objective.condition(leaf, noise_sample))
        told = Cond(**{name: _leaf(value) for name, value in vars(cond).items()})
        terms, of_decoder = counted(lambda: decoder.loss(batch["target"], told, noise_sample))
    of_reference = 0
    if objective.anchors and (reference := objective.reference) is not None:
        with torch.no_grad():
            _, of_reference = counted(lambda: reference(pixel_values))
    # each from where the gradient of the part behind it has come to
    back_decoder = _backward(terms.values())
    back_condition = _backward(value for name, value in vars(cond).items() if _reached(getattr(told, name)))
    back_encoder = _backward(value for name, value in vars(features).items() if _reached(getattr(leaf, name)))
    return {
        "target": Flops(forward=of_target),
        "encoder": Flops(forward=of_encoder, backward=back_encoder),
        "reference": Flops(forward=of_reference),
        "condition": Flops(forward=of_condition, backward=back_condition),
        "decoder": Flops(forward=of_decoder, backward=back_decoder),
    }


class Drawing(Protocol):
    """What is asked of the numbers of a phase, which are training's."""

    @property
    def noise(self) -> NoiseConfig: ...
    @property
    def noise_samples(self) -> int: ...
    @property
    def lora(self) -> Mapping[str, Any]: ...


def per_image(
    objective: Reconstruction, trains: Sequence[str], image_size: tuple[int, int], phase: Drawing, *, cached: bool
) -> Callable[[], float]:
    """What counts the operations of one image in a step of an objective that is about to train; 0 where it cannot.

    The objective is copied to the meta device now, which takes no memory, and counted when that is asked for. Low-rank
    updates are not there yet, so with them nothing is counted.

    Args:
        image_size: of the encoder's own images.
        cached: whether what the loss is held against is read, and not made.
    """
    if phase.lora or devices.rank():  # process 0 has the bar
        return lambda: 0.0
    copied, decoder = on_meta(objective), objective.decoder
    size = (decoder.image_px, decoder.image_px) if decoder.as_read else image_size

    def count() -> float:
        try:
            parts = count_step(copied, trains, size, phase.noise, images=copied.group)
        except (RuntimeError, NotImplementedError):  # an operation, or a tensor's place, that the meta device lacks
            return 0.0
        target = parts.pop("target").total
        once = sum(part.total for part in parts.values())
        return ((0 if cached else target) + phase.noise_samples * once) / copied.group

    return count


def on_meta(module: Module) -> Module:
    """A copy without numbers."""
    memo: dict[int, Any] = {id(each): each.detach().to(META) for each in module.buffers()}
    memo |= {id(each): nn.Parameter(each.detach().to(META), each.requires_grad) for each in module.parameters()}
    return copy.deepcopy(module, memo)


def _leaf(value: Tensor | None) -> Tensor | None:
    """The same tensor as the beginning of another graph, so that each part's backward pass can be counted by itself."""
    return None if value is None else value.detach().requires_grad_(value.requires_grad)


def _reached(leaf: Tensor | None) -> bool:
    return leaf is not None and leaf.grad is not None


def _backward(outputs: Iterable[Tensor]) -> int:
    given = [each for each in outputs if each.requires_grad]
    return counted(lambda: torch.autograd.backward(given, [torch.ones_like(each) for each in given]))[1] if given else 0
