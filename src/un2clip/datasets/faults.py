"""DIVA's two faults of normalisation (baaivision/DIVA), as options: so that what they change can be measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

View = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """Which of them are committed in training.

    Attributes:
        decoder: the decoder's images are normalised by OpenAI's mean and deviation, and brought back by ImageNet's.
        encoder: an encoder of another mean and deviation, such as SigLIP, gets OpenAI's.
    """

    decoder: bool
    encoder: bool

    def decoder_view(self, view: View) -> View:
        """A view in [-1, 1] -> the same, with the fault where it is on."""
        if not self.decoder:
            return view
        back = _normalise_back(IMAGENET_MEAN, IMAGENET_STD)
        to_shares, to_range = v2.Normalize([-1.0], [2.0]), v2.Normalize([0.5], [0.5])
        return v2.Compose([view, to_shares, v2.Normalize(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD), back, to_range])

    def encoder_view(self, view: View, mean: Sequence[float], std: Sequence[float]) -> View:
        """A view normalised by an encoder's own mean and deviation -> the same, with the fault where it is on."""
        if not self.encoder:
            return view
        return v2.Compose([view, _normalise_back(mean, std), v2.Normalize(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)])


def _normalise_back(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """x * std + mean, as torchvision can say it."""
    return v2.Normalize([-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std])
