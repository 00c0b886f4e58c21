"""Stage `shapes`: render the laptop world, in the layouts of the real data sets.

- `images/{train,heldout}/*.tar`: image-text tars in webdataset form, as CC3M is distributed.
- `benchmarks/mmvp_vlm`: MMVP_VLM's Questions.csv and image tree.
- `benchmarks/zeroshot`: objects x colours in clip-benchmark's webdataset layout.
- `benchmarks/segmentation`: four scenes a photograph, their objects' masks, in PASCAL VOC's layout.
- `benchmarks/reconstruction`: held-out scenes in a tar.
- `benchmarks/probe`: training and test tars, the attributes of each scene beside it.
- `instructions/{alignment,instruction}.json` and `instructions/images`: what a multimodal language model is trained
  with, in LLaVA's format; empty lists unless `questions.pictures` says more.
- `benchmarks/{cv_bench,mmvp,naturalbench,pope}`: what it is asked, as these were published, where `questions.of_each`
  says how much.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from un2clip.datasets.shards import write_shards
from un2clip.errors import UserError
from un2clip.files.outputs import is_empty, replaced
from un2clip.hashes import folder_sha256
from un2clip.world import scenes
from un2clip.world.asking import ASKED
from un2clip.world.conversing import write_conversations
from un2clip.world.probing import write_probe
from un2clip.world.writing import Shapes, encode_scenes, write_classes, write_masks, write_pairs, write_pictures


def shapes(params: Shapes, *, seed: int, images: Path, benchmarks: Path, instructions: Path) -> None:
    """Render the world. Held-out scenes and benchmarks share no scene with training.

    Images, instructions and each benchmark appear whole or not at all; what is there already must be the same.

    Args:
        seed: the same seed gives the same bytes.
        images: folder that gets train/*.tar and heldout/*.tar.
        benchmarks: folder that gets mmvp_vlm/, zeroshot/, segmentation/, probe/ and reconstruction/, and perhaps those
            of a language model.
        instructions: folder that gets alignment.json, instruction.json and their images/.

    Raises:
        UserError: a folder holds something else.
    """
    seeds = np.random.SeedSequence(seed).spawn(12)
    train, heldout, pairs, classes, masked, probed, talks, *asked, pictured = (
        np.random.default_rng(each) for each in seeds
    )
    with _made(images) as folder:
        for split, rng, n in (("train", train, params.train_scenes), ("heldout", heldout, params.heldout_scenes)):
            drawn = scenes.draw(rng, n, plain=params.plain, heldout=split == "heldout")
            write_shards(folder / split, encode_scenes(rng, drawn, split, params), params.scenes_per_tar)
    with _made(instructions) as folder:
        write_conversations(talks, params.questions, params.image_px, folder)
    written: list[tuple[str, np.random.Generator, Callable[[np.random.Generator, Shapes, Path], None]]] = [
        ("mmvp_vlm", pairs, write_pairs),
        ("zeroshot", classes, write_classes),
        ("segmentation", masked, write_masks),
        ("probe", probed, write_probe),
        ("reconstruction", pictured, write_pictures),
    ]
    if params.questions.of_each:
        written += ((name, rng, write) for (name, write), rng in zip(ASKED.items(), asked, strict=True))
    for name, rng, write in written:
        with _made(benchmarks / name) as folder:
            write(rng, params, folder)


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder that appears whole. What is there of an earlier call must be the same."""
    with replaced(folder) as partial:
        yield partial
        if not is_empty(folder) and (not folder.is_dir() or folder_sha256(folder) != folder_sha256(partial)):
            raise UserError(f"{folder} already holds other files; delete it or name another folder")
