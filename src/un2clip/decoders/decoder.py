"""What every decoder is: it draws an image from a condition, and its loss says how well.

A decoder knows no encoder. What it is told is a `Cond`, what is random in it a `NoiseSample`, and what it is held
against the target that it makes of a batch itself: latents, pixels, or another picture in another space.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from un2clip.config import at_least
from un2clip.errors import UserError, reason

#: Every random number of one evaluation of a loss by name, (B, ...), drawn on the CPU for the whole batch: so a GPU,
#: two encoders that are compared, and any number of processes meet the same ones.
NoiseSample = dict[str, Tensor]
Timesteps = Literal["independent", "stratified"]
Network = Callable[[Tensor, Tensor, "Cond"], Tensor]


@contextmanager
def shape_in_words(kind: str) -> Iterator[None]:
    """Say which numbers are wrong where diffusers can build no network of them.

    Args:
        kind: of the decoder: its section of finetune.scratch.
    """
    try:
        yield
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"finetune.scratch.{kind} is no shape that diffusers can build ({reason(error)[:200]}); take numbers that "
            "divide each other, as those of world.yaml do"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Cond:
    """What a decoder is told; each decoder reads one or two of them.

    Attributes:
        vector: (B, V).
        sequence: (B, L, C).
        mask: (B, L) bool, False where the sequence does not count; None: all of it does.
        spatial: (B, C, h, w).
    """

    vector: Tensor | None = None
    sequence: Tensor | None = None
    mask: Tensor | None = None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return next(len(value) for value in (self.vector, self.sequence, self.spatial) if value is not None)

    def take(self, samples: Tensor) -> "Cond":
        """What these samples are told, by their numbers (N,) int64."""
        return Cond(**{name: value[samples] for name, value in vars(self).items() if value is not None})

    def after(self, other: "Cond") -> "Cond":
        """Both as one batch, the other's first."""
        pairs = {name: (getattr(other, name), value) for name, value in vars(self).items() if value is not None}
        return Cond(**{name: torch.cat(pair) for name, pair in pairs.items()})


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What a decoder draws for each sample, in numbers.

    Attributes:
        timesteps: lowest and highest timestep drawn, both included.
        timesteps_drawn: independent: each sample for itself. stratified: one of each B-th of the range, dealt out at
            random. Each sample's timestep is uniform in both, so the mean loss has the same expectation; the second
            spares it the variance of which timesteps a batch happens to meet (arXiv 2107.00630, 2605.21489).
        noise_level: lowest and highest level of the embedding's noise augmentation, both included.
        condition_dropout: probability that a sample's condition is dropped, as in classifier-free guidance
            (arXiv 2207.12598); None where a loss is measured: none is dropped, and no number drawn for it.
        time_scale: s of a flow's times sigmoid(s N(0, 1)), the scaled logit-normal distribution (arXiv 2503.19480);
            0 for uniform ones. A flow reads neither `timesteps` nor `timesteps_drawn`.
    """

    timesteps: tuple[int, ...]
    timesteps_drawn: Timesteps
    noise_level: tuple[int, ...]
    condition_dropout: float | None
    time_scale: float

    def __post_init__(self) -> None:
        for name in ("timesteps", "noise_level"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} must be the lowest and the highest, got {list(getattr(self, name))}")
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(
                    f"{name} must be a lowest of at least 0 and a highest not below it, got {low} and {high}"
                )
        at_least(self, 0, "time_scale")
        if not 0 <= (self.condition_dropout or 0) <= 1:
            raise ValueError(f"condition_dropout must be a probability between 0 and 1, got {self.condition_dropout}")


class Decoder(nn.Module):
    """A decoder: frozen and in evaluation mode until something trains it.

    Attributes:
        reads: what of a condition it reads, names of Cond.
        random: whether what it draws depends on noise besides.
        as_read: whether the encoder reads images of the side that the decoder draws, whatever its own.
        image_px: side of the square images that it draws and that `target` reads.
    """

    reads: tuple[str, ...] = ("vector",)
    random: bool = True
    as_read: bool = False
    image_px: int

    @property
    def network(self) -> nn.Module:
        """What trains where the decoder does."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def target(self, batch: dict[str, Any], at_once: int | None = None) -> Tensor:
        """What the loss holds a prediction against, (B, ...), on this device, without gradient.

        Args:
            batch: as datasets/loader.py makes it.
            at_once: images encoded in one go.
        """
        raise NotImplementedError

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one sample's target, such as (C, h, w)."""
        raise NotImplementedError

    def resize(self, image_px: int) -> None:
        """Draw and read images of another side from now on.

        Raises:
            UserError: the decoder cannot.
        """
        self.image_px = image_px

    def check(self, noise: NoiseConfig) -> None:
        """Raise a UserError where these numbers are outside of the decoder's range."""

    def draw(self, n: int, rng: torch.Generator, noise: NoiseConfig) -> NoiseSample:
        """The random numbers of n samples."""
        return {}

    def predict(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> Tensor:
        """What the decoder's network says of the (noised) target under the condition; its own space and shape."""
        raise NotImplementedError

    def loss(self, target: Tensor, cond: Cond, noise_sample: NoiseSample) -> dict[str, Tensor]:
        """Named terms, (B,) float32 each; their sum is what falls."""
        raise NotImplementedError

    def sample(
        self, cond: Cond, rng: torch.Generator, *, sampling_steps: int, guidance_scale: float, noise_level: int
    ) -> Tensor:
        """Draw one image a sample of the condition, (B, 3, S, S) float32 in [-1, 1].

        Args:
            rng: on the CPU, so that a GPU meets the same numbers.
            sampling_steps: of a diffusion or flow; others ignore it.
            guidance_scale: of classifier-free guidance (arXiv 2207.12598); 1 is none.
            noise_level: of the embedding's noise augmentation; others than unCLIPs ignore it.
        """
        raise NotImplementedError

    def prepare(
        self, *, dtype: torch.dtype, checkpointing: bool = False, channels_last: bool = False, compiled: bool = False
    ) -> None:
        """Make training lighter or faster; what is computed stays the same, within the dtype's rounding.

        Args:
            dtype: the networks are held in it: float32, or bfloat16 where they do not train. Statistics, noise and
                loss stay float32.
            checkpointing: blocks are computed again in the backward pass instead of kept. diffusers heeds the switch
                in evaluation mode too, so a frozen network needs no `train()` and gets no dropout.
            channels_last: memory layout of convolutions that tensor cores prefer.
            compiled: torch.compile, in place, so that parameters keep their names.

        Raises:
            UserError: float16 is asked for.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise UserError(
                f"a generator is held in float32 or bfloat16, got {str(dtype).removeprefix('torch.')}: "
                "SD-2.1's attention overflows in float16"
            )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for part in self.networks():
            nn.Module.to(part, dtype=dtype)  # diffusers' own warns of layers that these have not
            part.to(memory_format=layout)
        if checkpointing:
            self.network.enable_gradient_checkpointing()  # type: ignore[operator]
        if compiled:
            self.network.compile()

    def networks(self) -> Sequence[nn.Module]:
        """What `prepare` holds in a dtype."""
        return (self.network,)


def guided(at: "Network", noisy: Tensor, time: Tensor, cond: Cond, nothing: Cond, guidance_scale: float) -> Tensor:
    """What a network says under a condition, pushed away from what it says under none (arXiv 2207.12598).

    Both go through the network as one batch; a scale of 1 asks for no guidance, and the condition alone is asked.

    Args:
        at: noisy (B, ...), time (B,), condition -> prediction (B, ...).
    """
    if guidance_scale <= 1:
        return at(noisy, time.expand(len(noisy)), cond)
    both = at(torch.cat([noisy, noisy]), time.expand(2 * len(noisy)), cond.after(nothing))
    unconditional, conditional = both.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def draw_timesteps(n: int, rng: torch.Generator, noise: NoiseConfig) -> Tensor:
    """(n,) int64, each uniform within the range."""
    low, high = noise.timesteps
    width = high + 1 - low
    drawn = torch.randint(width, (n,), generator=rng)
    if noise.timesteps_drawn == "stratified":
        drawn = (torch.randperm(n, generator=rng) * width + drawn) // n
    return low + drawn
