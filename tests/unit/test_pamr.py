"""PAMR against the paper's formula, one pixel and one neighbour at a time."""

import math

import pytest
import torch

from un2clip.evaluation.dense.pamr import DISTANCES, SHARPNESS, refine


def naive(similarity: torch.Tensor, picture: torch.Tensor, steps: int) -> torch.Tensor:
    """Each pixel is the weighted mean of its 16 neighbours, which are held at the edge."""
    _, height, width = picture.shape
    offsets = [(d * i, d * j) for d in (8, 16) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    for _ in range(steps):
        found = torch.zeros_like(similarity)
        for y in range(height):
            for x in range(width):
                near = [(min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)) for i, j in offsets]
                looks = torch.stack([picture[:, down, across] for down, across in near])
                spread = torch.cat([looks, picture[None, :, y, x], picture[None, :, y, x]]).std(0)
                unlike = ((looks - picture[:, y, x]).abs() / (1e-8 + 0.1 * spread)).mean(1).tolist()
                weights = [math.exp(min(unlike) - each) for each in unlike]
                for (down, across), weight in zip(near, weights, strict=True):
                    found[:, y, x] += weight / sum(weights) * similarity[:, down, across]
        similarity = found
    return similarity


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_by_the_formula(steps: int) -> None:
    """Two names on a picture that is larger than one distance and smaller than the other."""
    assert DISTANCES == (8, 16) and SHARPNESS == 0.1  # written out in the formula above
    torch.manual_seed(0)
    similarity, picture = torch.rand(2, 11, 19), torch.rand(3, 11, 19).round(decimals=1)
    torch.testing.assert_close(refine(similarity, picture, steps), naive(similarity, picture, steps))


def test_an_object_is_not_mixed_with_what_looks_otherwise() -> None:
    """A black and a white half: ten steps make each half's noise even, and the border stays where it was."""
    torch.manual_seed(0)
    picture = torch.zeros(3, 40, 40)
    picture[:, :, 20:] = 1
    truth = picture[0].long()
    similarity = torch.stack([1 - picture[0], picture[0]]) + 0.8 * torch.randn(2, 40, 40)
    assert (similarity.argmax(0) == truth).float().mean() < 0.85
    assert (refine(similarity, picture, 10).argmax(0) == truth).float().mean() > 0.99


def test_a_plain_picture_gives_the_plain_mean() -> None:
    """Where all pixels look alike, no number is lost to 0 / 0, and each neighbour weighs a sixteenth."""
    similarity = torch.rand(1, 5, 5)
    found = refine(similarity, torch.ones(3, 5, 5), 1)
    assert torch.isfinite(found).all()
    corners = similarity[0, [0, 0, 0, 2, 2, 4, 4, 4], [0, 2, 4, 0, 4, 0, 2, 4]]  # eight ways from the middle, twice
    assert found[0, 2, 2].item() == pytest.approx(corners.mean().item())
