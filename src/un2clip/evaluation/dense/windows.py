"""Sliding windows: cut a picture, compare every patch with every name, put the parts together again.

As SCLIP, ClearCLIP and NACLIP do it: windows of one size in steps of one stride, the last one shifted back to
fit, overlaps averaged.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from un2clip.errors import UserError
from un2clip.evaluation.dense.features import Grid, dense_features, patch_size
from un2clip.models.clip import Clip

#: What is done with a window's side that the patch does not divide: zeros on both ends (ClearCLIP), or its last pixels
#: left out and the rest stretched over the window (SCLIP, NACLIP).
Edge = Literal["pad", "floor"]


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, kw_only=True)
class Map:
    """The cosines of a picture's pixels with the names; made for as many names as are asked for, `map[0:8]`.

    Attributes:
        parts: each window with the cosines of its patches, (Q, h, w).
        size: of the picture.
        patch: of the tower.
        edge: as of `similarity_maps`.
        patches_only: whether the map is its only window's patches, (Q, h, w).
    """

    parts: list[tuple[Window, Tensor]]
    size: Grid
    patch: Grid
    edge: Edge
    patches_only: bool

    def __len__(self) -> int:
        """Q, the number of names."""
        return len(self.parts[0][1])

    def __getitem__(self, names: slice) -> Tensor:
        """(q, H, W) of some names."""
        parts = [(window, similarities[names]) for window, similarities in self.parts]
        return parts[0][1] if self.patches_only else _averaged(parts, self.size, self.patch, self.edge)

    @property
    def patches(self) -> Tensor:
        """(Q, n) of all windows' patches."""
        return torch.cat([similarities.flatten(1) for _, similarities in self.parts], dim=1)


def windows(height: int, width: int, crop: int, stride: int) -> list[Window]:
    """The windows over a picture; one as small as the picture where it is smaller than `crop`, or where that is 0."""
    if not crop:
        return [Window(0, 0, height, width)]
    return [
        Window(top, left, min(crop, height), min(crop, width))
        for top in _starts(height, crop, stride)
        for left in _starts(width, crop, stride)
    ]


def _starts(side: int, crop: int, stride: int) -> list[int]:
    n = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - crop), 0) for i in range(n)]


def similarity_maps(
    clip: Clip,
    pictures: Iterable[Tensor],
    text_features: Tensor,
    *,
    method: str,
    crop: int,
    stride: int,
    edge: Edge,
    batch_size: int,
) -> Iterator[Map]:
    """For each picture (3, H, W), in order, the cosine of every pixel with every name: a map (Q, H, W).

    A picture that is taken whole and floored keeps its patches' (Q, h, w): SCLIP and NACLIP stretch those over the
    picture's own size in one step.

    Windows of several pictures go through the tower together, `batch_size` at once where their sizes agree; no more
    pictures are held than fill a batch, so memory does not grow with the data set.

    Args:
        pictures: preprocessed, each of its own size.
        text_features: (D, Q), L2-normalised.
        method: a row of DENSE_METHODS.
        crop, stride: of the windows, in pixels; 0 and 0: the whole picture at once.
        edge: what is done with sides that the patch does not divide.
    """
    whole = not crop and edge == "floor"
    held: list[tuple[Tensor, list[Window]]] = []
    for picture in pictures:
        places = windows(picture.shape[1], picture.shape[2], crop, stride)
        if held and sum(len(each) for _, each in held) + len(places) > batch_size:
            yield from _together(clip, held, text_features, method, edge, whole, batch_size)
            held = []
        held.append((picture, places))
    if held:
        yield from _together(clip, held, text_features, method, edge, whole, batch_size)


def _together(
    clip: Clip,
    held: list[tuple[Tensor, list[Window]]],
    text_features: Tensor,
    method: str,
    edge: Edge,
    whole: bool,
    batch_size: int,
) -> Iterator[Map]:
    alike: dict[tuple[int, int], list[tuple[int, Window]]] = defaultdict(list)
    for i, (_, places) in enumerate(held):
        for window in places:
            alike[window.height, window.width].append((i, window))
    found: dict[tuple[int, Window], Tensor] = {}
    on_device = [picture.to(text_features.device, non_blocking=True) for picture, _ in held]
    for same in alike.values():
        for start in range(0, len(same), batch_size):
            part = same[start : start + batch_size]
            pixel_values = torch.stack([on_device[i][:, *window.inside] for i, window in part])
            found.update(zip(part, patch_similarities(clip, pixel_values, text_features, method, edge), strict=True))
    for i, (picture, places) in enumerate(held):
        parts = [(window, found.pop((i, window))) for window in places]
        size = (picture.shape[1], picture.shape[2])
        yield Map(parts=parts, size=size, patch=patch_size(clip.model.visual), edge=edge, patches_only=whole)


def patch_similarities(clip: Clip, pixel_values: Tensor, text_features: Tensor, method: str, edge: Edge) -> Tensor:
    """Cosines (B, Q, h, w) of every patch of a batch of windows.

    Raises:
        UserError: edges are floored, and a window is smaller than a patch.
    """
    size, patch = (pixel_values.shape[2], pixel_values.shape[3]), patch_size(clip.model.visual)
    if edge == "floor":
        if size[0] < patch[0] or size[1] < patch[1]:
            raise UserError(f"a picture of {size[0]} x {size[1]} px is smaller than a patch of {patch[0]} x {patch[1]}")
        fitting = pixel_values[:, :, : size[0] // patch[0] * patch[0], : size[1] // patch[1] * patch[1]]
    else:
        fitting = pad(pixel_values, _margins(size, patch))
    with clip.arithmetic():
        found = dense_features(clip.model.visual, fitting, method)
    features = normalize(found.float(), dim=1)
    return torch.einsum("bdhw,dq->bqhw", features, text_features)


def _margins(size: Grid, patch: Grid) -> tuple[int, int, int, int]:
    """Left, right, top, bottom: zeros on both sides up to a multiple of the patch, as ClearCLIP pads."""
    down, across = -size[0] % patch[0], -size[1] % patch[1]
    return across // 2, across - across // 2, down // 2, down - down // 2


def _averaged(parts: list[tuple[Window, Tensor]], size: Grid, patch: Grid, edge: Edge) -> Tensor:
    """Patch similarities (Q, h, w) of each window, all of one size -> their mean at every pixel, (Q, H, W)."""
    window, first = parts[0]
    left, _, top, _ = _margins((window.height, window.width), patch)
    padded = (first.shape[1] * patch[0], first.shape[2] * patch[1])
    if edge == "floor":
        left, top, padded = 0, 0, (window.height, window.width)
    pixels = interpolate(torch.stack([similarities for _, similarities in parts]), size=padded, mode="bilinear")
    total = first.new_zeros((len(first), *size))
    count = first.new_zeros(size)
    for (window, _), each in zip(parts, pixels, strict=True):
        total[:, *window.inside] += each[:, top : top + window.height, left : left + window.width]
        count[window.inside] += 1
    return total.div_(count)
