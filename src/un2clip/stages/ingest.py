"""Image-text tars to checked shards: every input sample is kept, or rejected with its reason.

Takes tars of `jpg|png|webp (+ txt) (+ json)` as CC3M is distributed, or the laptop world's. Nothing in them is
trusted, nothing of them is unpacked under its own name, and what comes out can be read without further checks.

Map, reduce, map: samples are checked tar by tar (`parts`), then all are looked at together by key and fingerprint
(`deciding`), then shards are written one by one (`cutting`). What is made so far lies in a hidden folder beside the
shards until they are whole; the same command goes on there, whatever ended the one before.
"""

import os
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from un2clip.datasets.captions import CaptionStatistics
from un2clip.datasets.cutting import Cut, write_shard
from un2clip.datasets.deciding import REJECTED, Decided, decide
from un2clip.datasets.engine import Engine, at_once, run_tasks
from un2clip.datasets.ingesting import Ingest
from un2clip.datasets.parts import Part, check_tar
from un2clip.datasets.remote import address
from un2clip.datasets.shards import INDEX, Index, Shard
from un2clip.datasets.sources import find_sources, not_read
from un2clip.datasets.tables import opened
from un2clip.errors import UserError, shown
from un2clip.files.outputs import is_empty, only_one, put


def ingest(params: Ingest, *, images: Path, shards: Path) -> None:
    """Check every sample of the tars in `images`; write shards, their index and the list of rejects.

    Args:
        params: the section `ingest`.
        images: folder of tars; or one with tars in train/ and heldout/, which are then the splits. It may be of a
            bucket, `s3://bucket/folder`.
        shards: output {train,heldout}/*.tar, index.json, rejected.jsonl. Appears whole or not at all.

    Raises:
        UserError: no tars, no usable sample of a split, a tar changes while it is read, a bucket does not let us in, or
            `shards` is a folder that something else made.
    """
    sources = find_sources(images, shards)
    _check_replaceable(shards)
    other = not_read(images, shards, sources)
    folder = shards.resolve()  # one that is a link to another disk stays one
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    processes = min(at_once(params.processes, params.engine, None), len(sources))
    parts = [
        Part(
            params=params, images=images, tar=tar, split=split, folder=work / "parts",
            threads=max(1, (os.cpu_count() or 1) // processes),
        )
        for split, tar in sources
    ]  # fmt: skip
    with only_one(work / "lock", f"another `un2clip ingest` writes {shards}; let it end"):
        try:
            _check(parts, processes, params.engine)
            decided = decide(parts, params, work / "plans")
            summary = _summary(decided, other)
            splits = {split for split, _ in sources}
            if fault := _fault(decided, images, splits):
                shutil.rmtree(work)  # other images are needed, or other numbers
                raise UserError(f"{fault}: {summary}; first: {decided.first}")
            written, captions = _write(decided, params, work, processes)
        except BaseException:
            if work.is_dir():
                print(f"un2clip: {work} has what was made so far; the same command goes on there", file=sys.stderr)
            raise
        made = work / "shards"
        index = Index(splits=written, rejected=decided.rejected, captions=captions, damaged_tars=decided.damaged)
        index.save(made)
        shutil.copyfile(work / "plans" / REJECTED, made / REJECTED)
        put(made, folder)
        shutil.rmtree(work)
    listed = f"; each is listed in {shards / REJECTED}" if index.rejected else ""
    print(f"ingest: {shown(summary)}{listed}")


def _check(parts: list[Part], processes: int, engine: Engine) -> None:
    """The first map: what is missing of the parts."""
    parts[0].folder.mkdir(exist_ok=True)
    missing = [part for part in parts if not part.is_done()]
    sizes = {part.tar: part.stamp()[0] for part in parts}
    left = sum(sizes[part.tar] for part in missing)
    total = sum(sizes.values())
    with tqdm(total=total, initial=total - left, unit="B", unit_scale=True, desc="ingest", mininterval=1) as bar:
        for part in run_tasks(check_tar, missing, processes, engine):
            bar.update(sizes[part.tar])


def _write(
    decided: Decided, params: Ingest, work: Path, processes: int
) -> tuple[dict[str, tuple[Shard, ...]], dict[str, object]]:
    """The second map: what is missing of the shards. Returns all of them, and the statistics of their captions."""
    cuts = {
        split: [
            Cut(plan=plan, parts=work / "parts", shard=work / "shards" / split / f"{plan.stem}.tar")
            for plan in sorted((work / "plans" / split).glob("*.jsonl"))
        ]
        for split in decided.samples
    }
    for split in cuts:
        (work / "shards" / split).mkdir(parents=True, exist_ok=True)
    every = [cut for split in cuts.values() for cut in split]
    missing = [cut for cut in every if not cut.is_done()]
    bar = tqdm(total=len(every), initial=len(every) - len(missing), unit="shard", desc="ingest: shards", delay=2)
    with bar, opened(work / "words.sqlite") as tables:
        for _ in run_tasks(write_shard, missing, processes, params.engine):
            bar.update()
        statistics = CaptionStatistics(tables)
        splits = dict[str, tuple[Shard, ...]]()
        for split, listed in cuts.items():
            found = [written for cut in listed if (written := cut.written())]
            assert sum(written.shard.samples for written in found) == decided.samples[split], split
            for written in found:
                statistics.add(written.words)
            splits[split] = tuple(written.shard for written in found)
            for path in (work / "shards" / split).iterdir():
                if path not in {cut.shard for cut in listed}:
                    path.unlink()  # of an earlier call with other images
        return splits, statistics.summary(unique=decided.captions)


def _summary(decided: Decided, other: str) -> str:
    kept, rejected = sum(decided.samples.values()), sum(decided.rejected.values())
    parts = [f"kept {kept} of {kept + rejected}"]
    parts += [f"{split} {samples}" for split, samples in decided.samples.items()]
    parts += ["nothing is held out to measure on"] * (not decided.samples["heldout"])
    parts += [f"{decided.without_caption} without a caption"] * bool(decided.without_caption)
    parts += [f"{decided.hidden} dot-files passed over"] * bool(decided.hidden)
    parts += [f"rejected {count}: {reason}" for reason, count in decided.rejected.items()]
    parts += [shown(f"damaged tar {tar} ({damage})") for tar, damage in decided.damaged.items()]
    parts += [f"not read: {other}"] * bool(other)
    return "; ".join(parts)


def _fault(decided: Decided, images: Path, named: set[str]) -> str:
    """What keeps the shards from being used: nothing to train on, or nothing of a split for which there is a folder."""
    if not any(decided.samples.values()):
        return f"no usable sample in {address(images)}"
    for split, samples in decided.samples.items():
        if not samples and split in named:
            return f"no usable sample in {address(images / split)}"
        if not samples and split == "train":
            return "nothing is left to train on; lower ingest.heldout_fraction or add images"
    return ""


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not an earlier output of `ingest`.

    Raises:
        UserError: names the folder.
    """
    if not is_empty(folder) and not (folder / INDEX).is_file():
        raise UserError(f"{folder} exists and was not made by ingest; delete it or name another folder")
