"""The reduce of `ingest`: which of the checked samples are kept, under which key, and in which shard.

It sees rows and no picture: keys, fingerprints and hashes of captions of all tars, in their order. What it finds are
plans, a file for each shard, whose lines say which bytes of which part it is made of.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from un2clip.config import read_record
from un2clip.datasets.duplicates import Duplicates
from un2clip.datasets.ingesting import Ingest
from un2clip.datasets.parts import Part
from un2clip.datasets.shards import shard_bounds
from un2clip.datasets.sources import SPLITS
from un2clip.datasets.tables import StoredSet, opened
from un2clip.datasets.tars import Keys, Rejected
from un2clip.errors import UserError, shown
from un2clip.files.outputs import write_json

REJECTED = "rejected.jsonl"
_DECIDED = "decided.json"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A sample that is kept: where its contents lie, and what they are to be called.

    Attributes:
        data: name of the part's data file.
        at: where in it.
        key: unique over all tars.
        members, crc: as in Row.
    """

    data: str
    at: int
    key: str
    members: dict[str, int]
    crc: int


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What the reduce found.

    Attributes:
        made_of: hash of the parts and of the numbers.
        samples: kept of each split.
        rejected: reason -> number of samples, the most frequent first.
        first: the first reject, in words.
        captions: different ones among those kept.
        without_caption: of those kept.
        damaged: tar -> why it cannot be read to its end.
        hidden: dot-files.
    """

    made_of: str
    samples: dict[str, int]
    rejected: dict[str, int]
    first: str
    captions: int
    without_caption: int
    damaged: dict[str, str]
    hidden: int


def decide(parts: Sequence[Part], params: Ingest, plans: Path) -> Decided:
    """Write plans/SPLIT/00000.jsonl, ... and plans/rejected.jsonl, or keep those of an earlier call.

    Args:
        parts: of all tars in order, each done.
        plans: folder.
    """
    made_of = _made_of(parts, params)
    try:
        if (earlier := read_record(Decided, plans / _DECIDED, "ingest")).made_of == made_of:
            return earlier
    except UserError:
        pass
    for path in plans.rglob("*.json*"):
        path.unlink()
    found = _decide(parts, params, plans, made_of)
    for split, samples in found.samples.items():
        _cut(plans / split, shard_bounds(samples, params.samples_per_shard))
    write_json(plans / _DECIDED, dataclasses.asdict(found))
    return found


def _made_of(parts: Sequence[Part], params: Ingest) -> str:
    numbers = (params.samples_per_shard, params.heldout_fraction, params.duplicates, params.near_distance)
    sha256 = hashlib.sha256(f"{numbers}\n".encode())
    for part in parts:
        assert (made := part.made()) is not None and made.done, part
        sha256.update(f"{part.split} {json.dumps(str(part))} {made.made_of}\n".encode())
    return sha256.hexdigest()


def _decide(parts: Sequence[Part], params: Ingest, plans: Path, made_of: str) -> Decided:
    samples, reasons = dict.fromkeys(SPLITS, 0), Counter[str]()
    without_caption, first = 0, "nothing was read"
    with ExitStack() as stack:
        for split in SPLITS:
            (plans / split).mkdir(parents=True, exist_ok=True)
        orders = {split: stack.enter_context((plans / split / "order.jsonl").open("w")) for split in SPLITS}
        rejects = stack.enter_context((plans / REJECTED).open("w"))
        tables = stack.enter_context(opened(plans / "tables.sqlite"))
        keys = Keys(StoredSet(tables, "keys"))
        duplicates = Duplicates(params.duplicates, params.near_distance, tables)
        captions = StoredSet(tables, "captions")
        for part in tqdm(parts, unit="tar", desc="ingest: all tars together", delay=2):
            name, data, at = str(part), part.file("data").name, 0
            keys.open(name)
            for row in part.rows():
                try:
                    key = keys.claim(row.key) if row.claims else row.key
                    if row.reason:
                        raise Rejected(row.reason, row.detail)
                    duplicates.claim(key, row.fingerprint)
                except Rejected as why:
                    if not reasons:
                        first = shown(f"{name} {row.key!r}: {why}")
                    reasons[why.reason] += 1
                    line = {"tar": name, "key": row.key, "reason": why.reason, "detail": why.detail}
                    rejects.write(json.dumps(line) + "\n")
                else:
                    split = part.split or ("heldout" if row.draw < params.heldout_fraction else "train")
                    kept = Planned(data=data, at=at, key=key, members=row.members, crc=row.crc)
                    orders[split].write(json.dumps(vars(kept)) + "\n")
                    samples[split] += 1
                    if row.caption:
                        captions.add_digest(bytes.fromhex(row.caption))
                    else:
                        without_caption += 1
                at += row.bytes
        unique = len(captions)
    made = {str(part): each for part in parts if (each := part.made())}
    return Decided(
        made_of=made_of,
        samples=samples,
        rejected=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        first=first,
        captions=unique,
        without_caption=without_caption,
        damaged={name: each.damaged for name, each in made.items() if each.damaged},
        hidden=sum(each.hidden for each in made.values()),
    )


def _cut(folder: Path, bounds: Sequence[int]) -> None:
    """Cut the order of a split into a plan for each shard."""
    order = folder / "order.jsonl"
    with order.open("rb") as lines:
        for number, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
            with (folder / f"{number:05d}.jsonl").open("wb") as plan:
                plan.writelines(islice(lines, last - first))
    order.unlink()
