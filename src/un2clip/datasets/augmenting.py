"""A second view of an image: its colours, its sides and its frame changed a little, at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How far a second view may be from the first, as in DCR (arXiv 2603.04803).

    Attributes:
        jitter: largest change of brightness, contrast and saturation, as shares, and of hue, in turns.
        flips: probability that the picture is mirrored, and that it is turned upside down.
        crop: lowest and highest share of the area that a random crop keeps; 1 and 1 for none.
    """

    jitter: tuple[float, ...]
    flips: tuple[float, ...]
    crop: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.jitter) != 4 or not all(0 <= value <= 1 for value in self.jitter) or self.jitter[3] > 0.5:
            raise ValueError(
                "jitter must be four numbers of at least 0 (brightness, contrast and saturation up to 1, hue up to "
                f"0.5), got {list(self.jitter)}"
            )
        if len(self.flips) != 2 or not all(0 <= value <= 1 for value in self.flips):
            raise ValueError(f"flips must be two probabilities, got {list(self.flips)}")
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop must be a lowest and a highest share above 0 and up to 1, got {list(self.crop)}")

    def second_view(self, image: Image.Image, seed: int) -> Image.Image:
        """An RGB image of another one; the seed alone decides it, and torch's own state is left alone."""
        mirrored, turned = self.flips
        changes = (v2.ColorJitter(*self.jitter), v2.RandomHorizontalFlip(mirrored), v2.RandomVerticalFlip(turned))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed, own = v2.Compose(changes)(image), int(torch.randint(2**31, ()))
        return random_crop(changed, self.crop, own)


def random_crop(image: Image.Image, share: Sequence[float], seed: int) -> Image.Image:
    """A part of the image, of a share of its area and nearly of its shape; torch's own state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, list(share), [0.95, 1 / 0.95])
    return image.crop((left, top, left + width, top + height))
