"""Stage `latents`: encode every image by the VAE once, so that training and validation need not do it again."""

import functools
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.engine import Engine, at_once, run_tasks
from un2clip.datasets.latents import INDEX, MADE_OF, earlier_cache, file_of, made_of
from un2clip.datasets.shards import read_index
from un2clip.decoders import Unclip, load_generator
from un2clip.devices import Precision, autocast, multiplying, pick_device, relative_error
from un2clip.errors import UserError, disks_in_words
from un2clip.files.outputs import save_tensors, write_json
from un2clip.files.texts import read_json
from un2clip.hashes import file_sha256_once

ERROR = ".error.json"  # beside the index, until that has it: what a worker measured
RUN = 8  # shards in a row, at most, that a worker has as one task


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The section `latents` of params.yaml.

    Attributes:
        cache: whether to encode here; otherwise latents are encoded whenever they are needed.
        dtype: of the files.
        precision: in which the VAE computes. tf32: a GPU rounds what it multiplies to 10 bits. bf16: autocast.
        batch_size: images encoded at once.
        workers: processes that read images, beside each process that encodes; 0 for none.
        processes: that encode, a shard at a time; 0 for as many as GPUs are visible, or one.
        engine: who runs them.
    """

    cache: bool
    dtype: Literal["float32", "float16", "bfloat16"]
    precision: Precision
    batch_size: int
    workers: int
    processes: int
    engine: Engine

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "workers", "processes")


def latents(params: Latents, *, device: str, shards: Path, backbones: Path, latents: Path) -> None:
    """Write split/00000.safetensors beside every shard, and latents.json. A file that is there and fits is kept.

    In another precision than fp32 the first batch is encoded in both, and the relative error is printed and kept.

    Args:
        device: auto, cpu or cuda.
        shards: checked images, which may be of a bucket.
        backbones: its unclip/ has the VAE; without one there is nothing to encode for.
        latents: folder of the cache; without `cache` it gets latents.json alone.

    Raises:
        UserError: a sample cannot be read, or in this precision latents are not finite.
    """
    if not (backbones / "unclip").is_dir():
        write_json(latents / INDEX, {"cached": False, "vae_sha256": "", "shards": {}, "sha256": {}})
        print("latents: there is no unCLIP, so no latents either")
        return
    _generator.cache_clear()  # another may lie in the same folder by now
    processes = at_once(params.processes, params.engine, device)
    key, index = _generator(backbones, "cpu" if processes > 1 else device).vae_sha256(), read_index(shards)
    earlier, parts = earlier_cache(latents), dict[str, Part]()
    for split, listed in index.splits.items() if params.cache else ():
        for number, shard in enumerate(listed):
            path, name = file_of(latents, shards / split / shard.name), f"{split}/{shard.name}"
            what = f"{key} {shard.sha256} {params.dtype}"  # one text: safetensors writes several in any order
            if params.precision != "fp32":
                what += f" {params.precision}"
            parts[name] = Part(
                params=params, device=device, shards=shards, backbones=backbones, split=split, number=number, path=path,
                made_of=what, measures=not parts and params.precision != "fp32",
            )  # fmt: skip
    made = {name for name, part in parts.items() if made_of(part.path) == part.made_of}
    made = {name for name in made if file_sha256_once(parts[name].path) == earlier.sha256.get(name)}
    content: dict[str, Any] = {"cached": params.cache, "vae_sha256": key, "precision": params.precision}
    content["error"] = earlier.error if any(parts[name].measures for name in made) else None

    def write_index() -> None:
        """In the shards' order, whatever the order in which they were made."""
        done = [name for name in parts if name in made]
        content["shards"] = {name: parts[name].made_of.split(" ")[1] for name in done}
        content["sha256"] = {name: file_sha256_once(parts[name].path) for name in done}
        write_json(latents / INDEX, content)

    missing = [part for name, part in parts.items() if name not in made]
    with tqdm(total=len(parts), initial=len(made), unit="shard", desc="latents", mininterval=1) as progress:
        for part in _encoded(missing, params, processes, device):
            if part.measures:
                content |= read_json(latents / ERROR)
            made.add(str(part))
            write_index()  # after each: a run that is cut off keeps what it made
            progress.update()
    if content["error"] is not None:
        print(f"latents: in {params.precision} those of the first batch are {content['error']:.1e} off those in fp32")
    kept = {part.path for part in parts.values()}
    for path in [*latents.glob("*/*.safetensors"), *latents.glob("*/*.partial")]:
        if path not in kept:
            path.unlink()  # of a shard that is no more, or of a run that was cut off
    write_index()
    (latents / ERROR).unlink(missing_ok=True)
    _generator.cache_clear()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One shard to be encoded, as it is handed to a worker; its text is split/shard.tar.

    Attributes:
        number: of the shard in its split.
        path: of the file of latents.
        made_of: what the file says of itself.
        measures: whether the error of its first batch is measured.
    """

    params: Latents
    device: str
    shards: Path
    backbones: Path
    split: str
    number: int
    path: Path
    made_of: str
    measures: bool

    def __str__(self) -> str:
        return f"{self.split}/{self.path.stem}.tar"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Shards of one split in a row, one task of a worker: it reads ahead over them."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts))


def _encoded(missing: list[Part], params: Latents, processes: int, device: str) -> Iterator[Part]:
    """Encode them; each comes back when its file is there, in any order."""
    here = processes == 1 and params.engine == "processes"
    # what is cut off loses a run a process: that is at most a fiftieth of the work
    most = max(1, len(missing) if here else min(RUN, len(missing) // (50 * processes)))
    runs = list[Run]()
    for _, group in groupby(missing, lambda part: part.split):
        parts = tuple(group)
        runs += [Run(parts=parts[first : first + most]) for first in range(0, len(parts), most)]
    if here:
        yield from chain.from_iterable(map(encode_each, runs))
    else:
        for run in run_tasks(encode, runs, processes, params.engine, device):
            yield from run.parts


def encode(run: Run) -> None:
    """Encode the shards of a run."""
    for _ in encode_each(run):
        pass


def encode_each(run: Run) -> Iterator[Part]:
    """Encode the shards of a run. One comes back when its file is there, which is written while the next is encoded."""
    first, params = run.parts[0], run.parts[0].params
    generator = _generator(first.backbones, first.device)
    reader = loader.open_split(first.shards, first.split, _no_view, loader.generator_view(generator.image_px))
    indices = (
        batch
        for part in run.parts
        for batch in loader.batched(
            (loader.SampleIndex(part.number, i) for i in range(reader.sizes[part.number])), params.batch_size
        )
    )
    batches = loader.strict(loader.read(reader, indices, params.workers))
    written: Future[Part] | None = None
    with ThreadPoolExecutor(1) as writer:
        for part in run.parts:
            encoded = list[Tensor]()
            for batch in islice(batches, math.ceil(reader.sizes[part.number] / params.batch_size)):
                with multiplying(params.precision), autocast(generator.device, params.precision):
                    encoded.append(generator.target(batch).cpu())
                if part.measures and len(encoded) == 1:
                    _measure(encoded[0], generator.target(batch).cpu(), part)
                if written is not None:  # by now: it had this batch's time
                    yield written.result()
                    written = None
            written = writer.submit(_write, torch.cat(encoded).to(getattr(torch, params.dtype)), part)
        if written is not None:
            yield written.result()


def _measure(found: Tensor, exact: Tensor, part: Part) -> None:
    """Write down the relative error of a batch's latents."""
    error = relative_error(found, exact)
    if not math.isfinite(error):
        raise UserError(f"in {part.params.precision} the VAE makes latents that are not finite; set precision to fp32")
    write_json(part.path.parents[1] / ERROR, {"error": error})


def _write(encoded: Tensor, part: Part) -> Part:
    """The file is there whole or not at all, also where the disk is full."""
    part.path.parent.mkdir(parents=True, exist_ok=True)
    partial = part.path.with_suffix(".partial")
    with disks_in_words([part.path.parent], encoded.numel() * encoded.element_size()):
        try:
            save_tensors({"latents": encoded}, partial, {MADE_OF: part.made_of})
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk is not kept full by half a file
            raise
    partial.replace(part.path)
    return part


@functools.lru_cache(maxsize=1)
def _generator(backbones: Path, device: str) -> Unclip:
    """Read once a process."""
    return load_generator(backbones / "unclip", pick_device(device))


def _no_view(image: Image.Image) -> Tensor:
    """What the encoder would see is not wanted here."""
    return torch.empty(0)
