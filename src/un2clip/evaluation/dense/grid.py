"""Pictures: photographs, their labels and what encoders see, side by side, with the classes' colours."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from un2clip.evaluation.dense.masks import Classes, Pixels


def save_grid(
    images: Sequence[Pixels], rows: Mapping[str, Sequence[Classes]], legend: Mapping[str, Pixels], path: Path
) -> None:
    """Write a PNG: the photographs, below them a row of class maps each, and a legend of the classes that occur.

    Pixels that do not count are white.

    Args:
        legend: a colour (3,) for the name of each class, in their order.
    """
    from matplotlib.figure import Figure  # here, since every benchmark's start would wait for it
    from matplotlib.patches import Patch

    names = list(legend)
    colours = np.array([*legend.values(), (255, 255, 255)], np.uint8)  # the last one is that of class -1
    pictures = {"photograph": list(images)} | {name: [colours[each] for each in maps] for name, maps in rows.items()}
    figure = Figure(figsize=(1.2 + 1.6 * len(images), 1.6 * len(pictures) + 0.8), layout="constrained")
    grid = figure.subplots(len(pictures), len(images), squeeze=False)
    for axes_row, (name, row) in zip(grid, pictures.items(), strict=True):
        for axes, picture in zip(axes_row, row, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    found = sorted(
        {int(each) for maps in rows.values() for each in np.unique(np.concatenate([m.ravel() for m in maps]))}
    )
    handles = [Patch(color=colours[each] / 255, label=names[each]) for each in found if each >= 0]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(2, 2 * len(images)), fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
