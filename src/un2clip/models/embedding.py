"""Embeddings of a person's own images, as one Parquet file: for those who want no server.

The work is cut into parts, a tar or some thousand files each. A part is a file of its own until all are there, so the
same command goes on after it was killed, and the result does not depend on where.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from un2clip.datasets.images import decode
from un2clip.datasets.tars import IMAGE_EXTENSIONS, DamagedTar, groups
from un2clip.devices import pick_device
from un2clip.errors import UserError, reason
from un2clip.files.outputs import only_one
from un2clip.models.clip import Clip, encoder_sha256, load_clip
from un2clip.models.registry import Registry
from un2clip.tracking import store

FILES_A_PART = 4096  # images of a folder in one part: what a kill costs at most
MOST_BYTES = 200_000_000  # of an image in a tar; a larger one is left out


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is embedded at once: a tar, or some images of one folder."""

    source: Path
    files: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.files or (self.source,)

    def stamp(self, said: str) -> str:
        """Changes with its files' names, sizes and times, and with how they are embedded."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps([said, str(self.source), stats]).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image before it is embedded: its key, its file's bytes or place, or why there is none; bytes for progress."""

    key: str
    content: bytes | Path | None
    error: str = ""
    size: int = 0


def embed_with(
    encoder: Path | str, sources: Sequence[Path], to: Path, *, normalize: bool, batch_size: int, device: str
) -> None:
    """Embed with a CLIP folder or a registered version, and say what came of it.

    Args:
        encoder: a folder, or models:/name@alias.
        sources, to, batch_size: as of `embed`.
        normalize: whether the embeddings have length 1.
        device: auto, cpu or cuda.

    Raises:
        UserError: as `embed`; or there is no such encoder.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
    check_free_file(to)
    how: dict[str, Any] = {"encoder": str(encoder), "normalize": normalize}
    if isinstance(encoder, str):
        name, _, alias = encoder.removeprefix("models:/").partition("@")
        registry = Registry(name)
        with store.as_user_error():
            version = registry.version(registry.resolve_alias(alias))
        with tempfile.TemporaryDirectory() as folder:
            clip = load_clip(registry.fetch(version, Path(folder)), pick_device(device))
        how |= {"version": version.number, "encoder_sha256": version.tags["encoder_sha256"]}
    else:
        clip = load_clip(encoder, pick_device(device))
        how["encoder_sha256"] = encoder_sha256(encoder)
    embedded, failed = embed(clip, sources, to, how=how, batch_size=batch_size)
    left_out = f"; {failed} could not be read, and column error says why" if failed else ""
    print(f"{to}: {embedded} embeddings of {clip.embed_dim}{left_out}")


def check_free_file(to: Path) -> None:
    """Raise a UserError where something would be overwritten."""
    if to.exists():
        raise UserError(f"--to={to} exists and nothing is overwritten; name another file")


def embed(clip: Clip, sources: Sequence[Path], to: Path, *, how: dict[str, Any], batch_size: int) -> tuple[int, int]:
    """Embed every image of the sources into `to`; the same call goes on where another was cut off.

    The table has a row an image, in order of the sources and of the names in them: `source` (the tar or folder), `key`
    (its name in there), `embedding` (D float32) and `error` (why there is none). `how` is kept as metadata `un2clip`.

    Args:
        clip: on the device that computes.
        sources: tars, images, and folders, in which both are looked for.
        to: Parquet file to be made; its parts lie in TO.parts until it is whole.
        how: what the embeddings are: `normalize`, whether they have length 1, and whose they are.
        batch_size: images at a time.

    Returns:
        Number of images that were embedded, and of those that could not be.

    Raises:
        UserError: `to` exists, or a source does not, or has no image in it; or another process makes `to`.
    """
    check_free_file(to)
    how = how | {"dimensions": clip.embed_dim}
    found, said = list(parts(sources)), json.dumps(how, sort_keys=True)
    folder = to.with_name(f"{to.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    vector = pa.list_(pa.float32())  # of no fixed size: Parquet does not give such a list back where one is null
    columns = [("source", pa.string()), ("key", pa.string()), ("embedding", vector), ("error", pa.string())]
    schema = pa.schema(columns, metadata={"un2clip": said})
    made = [folder / f"{number:06}-{part.stamp(said)}.parquet" for number, part in enumerate(found)]
    sizes = [sum(path.stat().st_size for path in part.paths) for part in found]
    with _alone(folder, to), tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="embed", mininterval=1) as bar:
        for part, path, size in zip(found, made, sizes, strict=True):
            done = bar.n
            if not path.exists():
                with _writer(path, schema) as file:
                    for batch in _batches(_images(part), batch_size):
                        vectors, errors = _embed(clip, batch, normalize=bool(how["normalize"]))
                        keys, source = [each.key for each in batch], [str(part.source)] * len(batch)
                        content = [source, keys, pa.array(vectors, vector), errors]
                        file.write_batch(pa.record_batch(content, schema=schema))
                        bar.update(sum(each.size for each in batch))
            bar.update(done + size - bar.n)  # what a tar holds besides, and a part that was there
        return _join(made, to, schema)


def parts(sources: Sequence[Path]) -> Iterator[Part]:
    """The work in order: each source's tars and images, by name.

    Raises:
        UserError: a source does not exist, or has no tar and no image in it.
    """
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist; name tars, images, or folders of them")
        listed = sorted(source.rglob("*")) if source.is_dir() else [source]
        tars = [path for path in listed if path.suffix == ".tar" and path.is_file()]
        images = [path for path in listed if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and path.is_file()]
        if not tars and not images:
            raise UserError(f"{source} has no tar and no image ({', '.join(IMAGE_EXTENSIONS)})")
        yield from (Part(source=path) for path in tars)
        folder = source if source.is_dir() else source.parent
        for first in range(0, len(images), FILES_A_PART):
            yield Part(source=folder, files=tuple(images[first : first + FILES_A_PART]))


def _images(part: Part) -> Iterator[Found]:
    """The images of a part, or what stands in one's way; a tar that is cut off has an error as its last row."""
    for path in part.files:
        yield Found(key=str(path.relative_to(part.source)), content=path, size=path.stat().st_size)
    if part.files:
        return
    try:
        for group in groups(part.source, MOST_BYTES):
            named = group.image_extensions
            fault = str(group.fault or "" if len(named) == 1 else f"{len(named)} images of this name")
            content = group.members[named[0]] if named and not fault else None
            yield Found(key=group.key, content=content, error=fault, size=group.tar_bytes)
    except DamagedTar as error:
        yield Found(key="", content=None, error=f"the tar cannot be read to its end: {error}")


def _batches(images: Iterable[Found], size: int) -> Iterator[list[Found]]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield batch


def _embed(clip: Clip, batch: list[Found], *, normalize: bool) -> tuple[list[Any], list[str | None]]:
    """The embedding of each image, or None; and why there is none, or None."""

    def prepare(image: Found) -> Tensor | str:
        if image.content is None:
            return image.error
        try:
            return clip.preprocess(decode(image.content))
        except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
            return f"not a readable image: {reason(error)}"

    with ThreadPoolExecutor() as pool:
        prepared = list(pool.map(prepare, batch))
    tensors = [each for each in prepared if isinstance(each, Tensor)]
    if not tensors:
        return [None] * len(batch), [str(each) for each in prepared]
    embedded = clip.embed(torch.stack(tensors)).float().cpu()
    if normalize:
        embedded = torch.nn.functional.normalize(embedded, dim=-1)
    vectors = iter(embedded.numpy())
    return (
        [next(vectors) if isinstance(each, Tensor) else None for each in prepared],
        [None if isinstance(each, Tensor) else each for each in prepared],
    )


@contextmanager
def _alone(folder: Path, to: Path) -> Iterator[None]:
    """Only one process works in the folder of parts; it is removed afterwards unless somebody's own files are in it."""
    with only_one(folder / "lock", f"another process embeds into {to}; wait for it, or name another file"):
        yield
        (folder / "lock").unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file, there when it is whole and not before."""
    partial = path.with_name(f"{path.name}.partial")
    with pq.ParquetWriter(partial, schema) as file:
        yield file
    partial.replace(path)


def _join(made: list[Path], to: Path, schema: pa.Schema) -> tuple[int, int]:
    """Put the parts together, one at a time in memory, and remove them."""
    rows = failed = 0
    with _writer(to, schema) as file:
        for path in made:
            table = pq.read_table(path, schema=schema)
            file.write_table(table)
            rows, failed = rows + table.num_rows, failed + table.num_rows - table["error"].null_count
    for path in made[0].parent.glob("[0-9]*-*.parquet*"):  # also those of sources as they were before
        path.unlink()
    return rows - failed, failed
