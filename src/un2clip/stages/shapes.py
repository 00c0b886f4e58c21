"""Stage `shapes`: render the laptop world, in the layouts of the real data sets.

- `images/{train,heldout}/*.tar`: image-text tars in webdataset form, as CC3M is distributed.
- `benchmarks/mmvp_vlm`: MMVP_VLM's Questions.csv and image tree.
- `benchmarks/zeroshot`: objects x colours in clip-benchmark's webdataset layout.
- `benchmarks/segmentation`: four scenes a photograph, their objects' masks, in PASCAL VOC's layout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from un2clip.datasets.appearing import appearing, is_empty, same_content
from un2clip.datasets.shards import write_shards
from un2clip.errors import UserError
from un2clip.world import scenes
from un2clip.world.writing import Shapes, encode_scenes, write_classes, write_masks, write_pairs


def shapes(params: Shapes, *, seed: int, images: Path, benchmarks: Path) -> None:
    """Render the world. Held-out scenes and benchmarks share no scene with training.

    Images and each benchmark appear whole or not at all; what is there already must be the same.

    Args:
        seed: the same seed gives the same bytes.
        images: folder that gets train/*.tar and heldout/*.tar.
        benchmarks: folder that gets mmvp_vlm/, zeroshot/ and segmentation/.

    Raises:
        UserError: a folder holds something else.
    """
    seeds = np.random.SeedSequence(seed).spawn(5)
    train, heldout, pairs, classes, masked = (np.random.default_rng(each) for each in seeds)
    with _made(images) as folder:
        for split, rng, n in (("train", train, params.train_scenes), ("heldout", heldout, params.heldout_scenes)):
            drawn = scenes.draw(rng, n, plain=params.plain, heldout=split == "heldout")
            write_shards(folder / split, encode_scenes(rng, drawn, split, params), params.scenes_per_tar)
    for name, rng, write in (
        ("mmvp_vlm", pairs, write_pairs),
        ("zeroshot", classes, write_classes),
        ("segmentation", masked, write_masks),
    ):
        with _made(benchmarks / name) as folder:
            write(rng, params, folder)


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder that appears whole. What is there of an earlier call must be the same."""
    with appearing(folder) as partial:
        yield partial
        if not is_empty(folder) and not same_content(folder, partial):
            raise UserError(f"{folder} already holds other files; delete it or name another folder")
