"""A bank of captions: the texts of the caption-KL anchor.

They are captions of the training images, never a benchmark's prompts, and say nothing about which image has which.
"""

from itertools import islice
from pathlib import Path

from un2clip.datasets.loader import shuffled
from un2clip.datasets.random_access import locate, read_bytes
from un2clip.datasets.shards import check_shard, read_index
from un2clip.errors import UserError


def caption_bank(shards: Path, *, seed: int, size: int) -> list[str]:
    """So many different captions of the training images, or all if there are fewer, in an order that the seed decides.

    Raises:
        UserError: there are not two different ones, so there is nothing to tell apart.
    """
    index = read_index(shards)
    listed = index.splits["train"]
    bank: dict[str, None] = {}
    for shard, number, _ in islice(shuffled([each.samples for each in listed], seed), index.count("train")):
        tar = shards / "train" / listed[shard].name
        check_shard(tar, listed[shard])
        captions = locate(tar, ("txt",))
        try:
            bank[read_bytes(tar, captions[number]).decode(errors="replace")] = None
        except (IndexError, OSError):
            continue  # the tar is damaged or cut off before it: fewer captions
        if len(bank) == size:
            break
    if len(bank) < 2:
        raise UserError(
            f"a bank of captions needs two different ones, and {shards}/train has {len(bank)}; give `ingest` images "
            "with captions, or choose a method without them (un2clip-anchored)"
        )
    return list(bank)
