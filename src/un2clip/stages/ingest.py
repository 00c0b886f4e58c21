"""Image-text tars to checked shards: every input sample is kept, or rejected with its reason.

Takes tars of `jpg|png|webp (+ txt) (+ json)` as CC3M is distributed, or the laptop world's. Nothing in them is
trusted, nothing is unpacked to disk, and what comes out can be read without further checks.
"""

from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from un2clip.datasets.duplicates import Duplicates
from un2clip.datasets.ingesting import Ingest, Report, check_in_order
from un2clip.datasets.shards import INDEX, Index, ShardWriter
from un2clip.datasets.sources import SPLITS, find_sources, not_read, read_sources
from un2clip.datasets.tars import Rejected
from un2clip.errors import UserError, shown
from un2clip.files.outputs import is_empty, replaced

REJECTED = "rejected.jsonl"


def ingest(params: Ingest, *, images: Path, shards: Path) -> None:
    """Check every sample of the tars in `images`; write shards, their index and the list of rejects.

    Args:
        params: the section `ingest`.
        images: folder of tars; or one with tars in train/ and heldout/, which are then the splits.
        shards: output {train,heldout}/*.tar, index.json, rejected.jsonl. Appears whole or not at all.

    Raises:
        UserError: no tars, no usable sample of a split, or `shards` is a folder that something else made.
    """
    sources = find_sources(images, shards)
    _check_replaceable(shards)
    other = not_read(images, shards, sources)
    with replaced(shards) as partial, ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(partial / split, params.samples_per_shard)) for split in SPLITS
        }
        report = Report(stack.enter_context((partial / REJECTED).open("w")))
        duplicates = Duplicates(params.duplicates, params.near_distance)
        size = sum(tar.stat().st_size for _, tar in sources)
        bar = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, desc="ingest"))
        for source, checking in check_in_order(read_sources(sources, images, params.max_bytes, report.reading), params):
            bar.update(source.group.tar_bytes)
            try:
                checked = checking.result()
                duplicates.claim(source.key, checked.fingerprint)
            except Rejected as rejected:
                report.reject(source, rejected)
            else:
                split = source.split or ("heldout" if checked.draw < params.heldout_fraction else "train")
                writers[split].add(checked.sample)
                report.keep(checked.sample.caption)
        index = report.index({split: writer.close() for split, writer in writers.items()})
        samples = report.reading.samples
        assert samples == index.read, f"read {samples} samples, but kept + rejected is {index.read}"
        summary = _summary(index, report, other)
        _check_splits(index, images, {split for split, _ in sources}, f"{summary}; first: {report.first}")
        index.save(partial)
    print(
        f"ingest: {shown(summary)}",
        f"; each is listed in {shards / REJECTED}" if index.rejected else "",
        sep="",
    )


def _summary(index: Index, report: Report, other: str) -> str:
    parts = [f"kept {index.kept} of {index.read}"]
    parts += [f"{split} {index.count(split)}" for split in index.splits]
    parts += ["nothing is held out to measure on"] * (not index.count("heldout"))
    parts += [f"{report.without_caption} without a caption"] * bool(report.without_caption)
    parts += [f"{report.reading.hidden} dot-files passed over"] * bool(report.reading.hidden)
    parts += [f"rejected {count}: {reason}" for reason, count in index.rejected.items()]
    parts += [shown(f"damaged tar {tar} ({damage})") for tar, damage in index.damaged_tars.items()]
    parts += [f"not read: {other}"] * bool(other)
    return "; ".join(parts)


def _check_splits(index: Index, images: Path, named: set[str], found: str) -> None:
    """Refuse shards without anything to train on, and an empty split where the source has folders for both."""
    empty = [split for split in index.splits if not index.count(split)]
    if not index.kept:
        raise UserError(f"no usable sample in {images}: {found}")
    for split in empty:
        if split in named:
            raise UserError(f"no usable sample in {images / split}: {found}")
        if split == "train":
            raise UserError(f"nothing is left to train on; lower ingest.heldout_fraction or add images: {found}")


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not an earlier output of `ingest`.

    Raises:
        UserError: names the folder.
    """
    if not is_empty(folder) and not (folder / INDEX).is_file():
        raise UserError(f"{folder} exists and was not made by ingest; delete it or name another folder")
