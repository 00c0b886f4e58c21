"""The resize of segmentation's pictures against OpenCV's own, which mmcv calls."""

import cv2
import numpy as np
import pytest

from un2clip.evaluation.dense.resizing import resize

SIZES = [(336, 448), (448, 597), (560, 1120), (222, 313), (375, 500), (187, 250), (750, 1000), (125, 500), (375, 71)]


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours with noise of a few levels and hard edges, as photographs have; (height, width, 3) uint8."""
    rng = np.random.default_rng(height + width)
    down, across = np.mgrid[0:height, 0:width]
    smooth = 120 + 60 * np.sin(down[..., None] / (17, 23, 41)) + 50 * np.cos(across[..., None] / (29, 13, 37))
    edges = 40 * ((down // 31 + across // 19) % 2)[..., None]
    return (smooth + edges + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [False, True])
def test_values_are_opencvs(size: tuple[int, int], noise: bool) -> None:
    """At most one value in 500 is another one, and by one level; sizes up, down, to exactly half, and of one side."""
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8) if noise else scene(375, 500)
    found, theirs = resize(pixels, *size), cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert found.shape == theirs.shape == (*size, 3) and found.dtype == np.uint8
    off = np.abs(found.astype(int) - theirs.astype(int))
    assert (off != 0).mean() <= 0.002 and off.max() <= 1


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_edges_are_opencvs(side: int) -> None:
    """Pictures of a few pixels are nearly all edge: every value is OpenCV's."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    for size in ((1, 1), (2, 5), (3, 3), (16, 9), (2 * side, 2 * side + 2)):
        assert np.array_equal(resize(pixels, *size), cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))


def test_by_hand() -> None:
    """One white corner of 2 x 2, to 3 x 3: the lower edge is cut twice and has 127 where the middle has 64 and 128."""
    corner = np.array([[0, 0], [0, 255]], np.uint8)[..., None]
    assert resize(corner, 3, 3)[..., 0].tolist() == [[0, 0, 0], [0, 64, 128], [0, 127, 255]]


def test_half_is_the_mean_of_four() -> None:
    """OpenCV's bilinear becomes a mean of 2 x 2 at exactly half: 1 + 2 + 3 + 4 = 10 quarters are 3 levels."""
    assert resize(np.array([[1, 2], [3, 4]], np.uint8)[..., None], 1, 1).item() == 3
