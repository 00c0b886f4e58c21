"""Stage `shapes`: render the laptop world, in the layouts of the real data sets.

- `images/{train,heldout}/*.tar`: image-text tars in webdataset form, as CC3M is distributed.
- `benchmarks/mmvp_vlm`: MMVP_VLM's Questions.csv and image tree.
- `benchmarks/zeroshot`: objects x colours in clip-benchmark's webdataset layout.
- `benchmarks/segmentation`: four scenes a photograph, their objects' masks, in PASCAL VOC's layout.
- `benchmarks/probe`: training and test tars, the attributes of each scene beside it.
"""

from pathlib import Path

import numpy as np

from un2clip.datasets.shards import write_shards
from un2clip.world import scenes
from un2clip.world.probing import write_probe
from un2clip.world.writing import Shapes, encode_scenes, write_classes, write_masks, write_pairs


def shapes(params: Shapes, *, seed: int, images: Path, benchmarks: Path) -> None:
    """Render the world. Held-out scenes and benchmarks share no scene with training.

    Args:
        seed: the same seed gives the same bytes.
        images: folder that gets train/*.tar and heldout/*.tar.
        benchmarks: folder that gets mmvp_vlm/, zeroshot/, segmentation/ and probe/.
    """
    seeds = np.random.SeedSequence(seed).spawn(6)
    train, heldout, pairs, classes, masked, probed = (np.random.default_rng(each) for each in seeds)
    for split, rng, n in (("train", train, params.train_scenes), ("heldout", heldout, params.heldout_scenes)):
        drawn = scenes.draw(rng, n, plain=params.plain, heldout=split == "heldout")
        write_shards(images / split, encode_scenes(rng, drawn, split, params), params.scenes_per_tar)
    write_pairs(pairs, params, benchmarks / "mmvp_vlm")
    write_classes(classes, params, benchmarks / "zeroshot")
    write_masks(masked, params, benchmarks / "segmentation")
    write_probe(probed, params, benchmarks / "probe")
