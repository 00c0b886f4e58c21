"""Stage `finetune`: the method. The encoder trains until the generator, given its embedding, draws the image better."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from un2clip import devices, tracking
from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.caption_bank import caption_bank
from un2clip.datasets.latents import open_latents
from un2clip.datasets.shards import digest
from un2clip.decoders import Generator, load_generator, save_generator
from un2clip.decoders.assemble import measure_statistics
from un2clip.errors import Stopped, UserError
from un2clip.hashes import tensors_sha256
from un2clip.methods.anchors import embed_bank
from un2clip.methods.table import Method, get_method
from un2clip.models.clip import encoder_sha256, load_clip, save_clip, text_sha256
from un2clip.training import distributed
from un2clip.training.checkpoints import Checkpoints
from un2clip.training.config import DECIDING, ComputeConfig, PhaseConfig
from un2clip.training.loop import Batch, fit
from un2clip.training.progress import Record

CORRUPT_LISTED = 10  # lines on stderr; the count is in lineage.json


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """The section `finetune` of params.yaml.

    Attributes:
        batch_size: images of one optimiser step, of all processes together.
        statistics_images: how many images `align` measures the normaliser on.
        captions: different captions in the bank of the caption-KL anchor, at most.
        longer: methods that train longer take this many times the steps.
        training: what is learned.
        running: how it is computed.
    """

    batch_size: int
    statistics_images: int
    captions: int
    longer: int
    training: PhaseConfig
    running: ComputeConfig

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "statistics_images", "longer")
        at_least(self, 2, "captions")
        if self.batch_size % max(1, self.running.processes):
            raise ValueError(
                f"batch_size must be a multiple of running.processes ({self.running.processes}), got {self.batch_size}"
            )

    def training_of(self, row: Method) -> PhaseConfig:
        """What this row of the table makes of `training`."""
        return dataclasses.replace(self.training, steps=self.training.steps * (self.longer if row.longer else 1))


def finetune(
    params: Finetune,
    *,
    method: str,
    seed: int,
    device: str,
    checkpoints: str,
    shards: Path,
    backbones: Path,
    latents: Path,
    encoder: Path,
) -> None:
    """Train the encoder by one row of the method table. A training that was cut off goes on where it was.

    Args:
        method: a row of methods/table.py.
        seed: order of the images, timesteps and noise.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph for the state of trainings that are not finished; "" for none.
        shards: checked images; their captions are read only by methods that are anchored to them.
        backbones: clip/ and unclip/.
        latents: the cache of the VAE's latents, which may be empty.
        encoder: folder that gets the checkpoint, lineage.json and history.json; and generator/, if it trained.

    Raises:
        UserError: the parts do not fit, there are fewer images than a batch, memory is short, or the loss is not
            finite. In the last case the last good weights are in `encoder` all the same, and its lineage says so.
        Stopped: a signal asked for it; the same call goes on.
    """
    get_method(method)  # a wrong name is said before anything is started
    arguments = {"method": method, "seed": seed, "device": device, "checkpoints": checkpoints}
    paths = {"shards": shards, "backbones": backbones, "latents": latents, "encoder": encoder}
    processes = params.running.processes_here(device) if devices.world_size() == 1 else 1
    if processes > 1:
        distributed.launch(processes, _train, params, arguments | paths, tracking.active_run())
    else:
        _train(params, arguments | paths, None)


def _train(params: Finetune, names: dict[str, Any], run_id: str | None) -> None:
    """One process of the training. `run_id` is the stage's run in MLflow where another process has begun it."""
    device = devices.pick_device(names["device"])
    main = devices.rank() == 0
    with distributed.group(device), tracking.attached(run_id if main else None):
        try:
            _finetune(params, device=device, main=main, **{k: v for k, v in names.items() if k != "device"})
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {device} ({str(error).split('. ')[0]}); lower finetune.running.max_per_device, set "
                "finetune.running.gradient_checkpointing to true, or precision and frozen there to bf16"
            ) from None


def _finetune(
    params: Finetune,
    *,
    method: str,
    seed: int,
    device: torch.device,
    main: bool,
    checkpoints: str,
    shards: Path,
    backbones: Path,
    latents: Path,
    encoder: Path,
) -> None:
    row = get_method(method)
    training = params.training_of(row)
    clip, generator = load_clip(backbones / "clip", device), load_generator(backbones / "unclip", device)
    generator.check_fits(clip.embed_dim)
    loader.count(shards, "train", at_least=params.batch_size)
    if params.batch_size % devices.world_size():
        raise UserError(
            f"batch_size must be a multiple of the {devices.world_size()} processes, got {params.batch_size}"
        )
    cached = open_latents(latents, shards, generator.vae_sha256())
    reader = loader.open_split(shards, "train", clip.preprocess, loader.generator_view(generator.image_px), cached)
    parents = {
        "shards": digest(shards),
        "clip": tensors_sha256(clip.model.state_dict()),
        "generator": tensors_sha256(generator.state_dict()),
    }
    if row.measures_statistics:
        indices = loader.batched(loader.shuffled(reader.sizes, seed), params.running.max_per_device)
        pixel_values = (batch.pixel_values for batch in loader.read(reader, indices, params.running.workers))
        generator.set_statistics(*measure_statistics(clip, pixel_values, at_most=params.statistics_images))
    captions = None
    if "captions" in row.anchors:
        captions = embed_bank(clip, caption_bank(shards, seed=seed, size=params.captions))
    text_before = text_sha256(clip.model)
    kept = _checkpoints(params, training, checkpoints, {"method": method, "seed": seed, "parents": parents})
    saved = kept.newest() if kept else None
    if kept and saved and main:
        print(f"finetune: goes on after step {saved.step} of {training.steps}, from {kept.folder}")
        tracking.tag("resumed_from", saved.tags["mlflow_run"])
    history: list[Record] = []
    failure: UserError | None = None
    try:
        fit(
            clip.model,
            generator,
            row,
            training,
            params.running,
            lambda step: _local_batches(reader, generator, params, seed, step),
            torch.Generator().manual_seed(seed),
            history,
            captions=captions,
            on_step=tracking.log_metrics,
            checkpoints=kept,
            saved=saved,
        )
    except Stopped as stopped:
        raise Stopped(f"{stopped}; the same command goes on") from None
    except UserError as error:
        if not history:
            raise
        failure = UserError(f"{error}; the weights of step {len(history)}, the last good one, are in {encoder}")
    assert text_sha256(clip.model) == text_before, "a method must not touch the text tower"
    if main:
        save_clip(clip, encoder)
        if "decoder" in row.trains:
            save_generator(generator, like=backbones / "unclip", folder=encoder / "generator")
        lineage = {
            "method": method,
            "seed": seed,
            "params": dataclasses.asdict(params),
            "steps_done": len(history),
            "corrupt": int(history[-1]["corrupt"]) if history else 0,
            "complete": failure is None,
            "parents": parents,
            "encoder_sha256": encoder_sha256(encoder),
            "text_sha256": text_before,
        }
        (encoder / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")
        (encoder / "history.json").write_text(json.dumps(history) + "\n")
        if kept is not None:
            kept.clear()
    if failure is not None:
        raise failure


def _local_batches(
    reader: loader.Reader, generator: Generator, params: Finetune, seed: int, step: int
) -> Iterator[Batch]:
    """The local batch of every step from `step` on, read ahead by the workers."""
    rank, world = devices.rank(), devices.world_size()
    mine = slice(rank * params.batch_size // world, (rank + 1) * params.batch_size // world)
    indices = loader.shuffled(reader.sizes, seed, start=step * params.batch_size)
    device, told = generator.mean.device, 0
    for batch in loader.read(reader, loader.batched(indices, params.batch_size, mine), params.running.workers):
        for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True):
            if not valid and (told := told + 1) <= CORRUPT_LISTED:
                tqdm.write(f"un2clip: left out: {key}", file=sys.stderr)
        yield Batch(
            keys=batch.keys,
            pixel_values=batch.pixel_values.to(device, non_blocking=True),
            latents=generator.latents_of(batch, at_once=params.running.max_per_device),
            valid=batch.valid.to(device),
        )


def _checkpoints(params: Finetune, training: PhaseConfig, folder: str, names: dict[str, Any]) -> Checkpoints | None:
    """Where the state of this very training is kept: in a folder named by all that decides its result."""
    if not folder:
        return None
    running = {name: getattr(params.running, name) for name in DECIDING}
    numbers = {name: getattr(params, name) for name in ("batch_size", "captions", "statistics_images")}
    decides = names | {"training": dataclasses.asdict(training)} | numbers | running
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return Checkpoints(
        folder=Path(folder) / name,
        every=params.running.checkpoint_every,
        keep=params.running.keep_checkpoints,
        tags={"mlflow_run": tracking.active_run()},
    )
