"""Croissant 1.0 metadata of the training data, from the index of its shards, by MLCommons' own library.

The shards themselves are not published. Beside them, the file reads their samples back: `{split}-images` and
`{split}-captions`, which belong together by their key. The library keeps what it unpacked by the tar's path, so whoever
reads another data set with tars of the same names empties ~/.cache/croissant before.
"""

import warnings
from pathlib import Path
from typing import Any

from un2clip.datasets.shards import digest, read_index

KINDS = {"images": ("*.png", "*.jpg", "*.webp"), "captions": ("*.txt",)}
_FORMATS = {"images": "image/*", "captions": "text/plain"}


def croissant(shards: Path, licence: str) -> dict[str, Any] | None:
    """The metadata as plain data; None where mlcroissant is not installed.

    Args:
        shards: folder of `ingest`.
        licence: of the data, in words or as an address.

    Raises:
        UserError: the index cannot be read.
    """
    try:
        import mlcroissant as mlc
    except ImportError:
        return None
    index = read_index(shards)
    ctx: Any = mlc.Context()  # of Croissant 1.0: validators refuse the context of 1.1
    distribution: list[Any] = []
    records = []
    for split, listed in index.splits.items():
        files = [
            mlc.FileObject(
                ctx=ctx, id=f"{split}/{shard.name}", name=f"{split}/{shard.name}", content_url=f"{split}/{shard.name}",
                content_size=f"{shard.bytes} B", encoding_formats=["application/x-tar"], sha256=shard.sha256,
            )
            for shard in listed
        ]  # fmt: skip
        distribution += files
        for kind, patterns in KINDS.items():
            name = f"{split}-{kind}"
            distribution.append(
                mlc.FileSet(
                    ctx=ctx, id=f"{name}-files", name=f"{name}-files", contained_in=[file.id for file in files],
                    encoding_formats=[_FORMATS[kind]], includes=list(patterns),
                )
            )  # fmt: skip
            records.append(_records(mlc, ctx, name, kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata = mlc.Metadata(
            ctx=ctx, name=f"un2clip-{digest(shards)[:12]}", license=[licence], distribution=distribution,
            description=f"{index.kept} images with captions on which the encoder was trained, in webdataset tars; "
            f"{index.read - index.kept} of {index.read} that were read are left out. Digest {digest(shards)}.",
            record_sets=records,
        )  # fmt: skip
    return dict(metadata.to_json())


def _records(mlc: Any, ctx: Any, name: str, kind: str) -> Any:
    """Key and content of every file of a kind."""

    def field(what: str, data_type: Any, file_property: str, *transforms: Any) -> Any:
        source = mlc.Source(
            ctx=ctx,
            file_set=f"{name}-files",
            extract=mlc.Extract(ctx=ctx, file_property=file_property),
            transforms=list(transforms),
        )
        return mlc.Field(ctx=ctx, id=f"{name}/{what}", name=what, data_types=[data_type], source=source)

    content = mlc.DataType.IMAGE_OBJECT if kind == "images" else mlc.DataType.TEXT
    fields = [
        field("key", mlc.DataType.TEXT, "filename", mlc.Transform(regex=r"^(.+)\.[^.]+$")),
        field(kind.removesuffix("s"), content, "content"),
    ]
    return mlc.RecordSet(ctx=ctx, id=name, name=name, fields=fields)
