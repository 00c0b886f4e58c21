"""Stage `finetune`: the method. The encoder trains until the generator, given its embedding, draws the image better."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from un2clip import tracking
from un2clip.checkpoint import encoder_sha256, load_clip, save_clip, text_sha256
from un2clip.config import UserError, at_least_one
from un2clip.datasets import loader
from un2clip.datasets.shards import digest
from un2clip.decoder import load_generator, save_generator
from un2clip.methods import get_method
from un2clip.train import Record, Training, fit


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """The section `finetune` of params.yaml."""

    batch_size: int
    training: Training

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")


def finetune(
    params: Finetune, *, method: str, seed: int, device: str, shards: Path, backbones: Path, encoder: Path
) -> None:
    """Train the encoder by one row of the method table.

    Args:
        method: a row of methods.py.
        seed: order of the images, timesteps and noise.
        device: auto, cpu or cuda.
        shards: checked images; no caption is read.
        backbones: clip/ and unclip/.
        encoder: folder that gets the checkpoint, lineage.json and history.json; and generator/, if it trained.

    Raises:
        UserError: the parts do not fit, there are fewer images than a batch, or the loss is not finite. In the
            last case the last good weights are in `encoder` all the same, and its lineage says so.
    """
    row = get_method(method)
    clip, generator = load_clip(backbones / "clip"), load_generator(backbones / "unclip")
    loader.count(shards, "train", at_least=params.batch_size)
    text_before = text_sha256(clip.model)
    batches = loader.forever(
        shards, "train", clip.preprocess, loader.generator_view(generator.image_px), params.batch_size, seed
    )
    history: list[Record] = []

    def log(step: int, record: Record) -> None:
        history.append(record)
        tracking.log_metrics(step, record)

    failure = None
    try:
        fit(
            clip.model,
            generator,
            row,
            params.training,
            ((batch.keys, batch.pixel_values, generator.encode(batch.images)) for batch in batches),
            torch.Generator().manual_seed(seed),
            log,
        )
    except UserError as error:
        if not history:
            raise
        failure = UserError(f"{error}; the weights of step {len(history)}, the last good one, are in {encoder}")
    assert text_sha256(clip.model) == text_before, "a method must not touch the text tower"
    save_clip(clip, encoder)
    if "decoder" in row.trains:
        save_generator(generator, like=backbones / "unclip", folder=encoder / "generator")
    lineage: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "params": dataclasses.asdict(params),
        "steps_done": len(history),
        "complete": failure is None,
        "parents": {"shards": digest(shards), "clip": encoder_sha256(backbones / "clip")},
        "encoder_sha256": encoder_sha256(encoder),
        "text_sha256": text_before,
    }
    (encoder / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")
    (encoder / "history.json").write_text(json.dumps(history) + "\n")
    if failure is not None:
        raise failure
