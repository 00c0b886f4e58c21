"""Stage `finetune`: the method. The encoder trains until a decoder, told of its embedding, draws the image better."""

import copy
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch

from un2clip import devices
from un2clip.datasets import loader
from un2clip.datasets.caption_bank import caption_bank, word_bank
from un2clip.datasets.latents import CachedLatents, latents_sha256, open_latents, vae_of
from un2clip.datasets.shards import digest
from un2clip.decoders import Decoder, Unclip
from un2clip.decoders.assemble import measure_statistics
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.decoders.kinds import open_decoder
from un2clip.decoders.pixels import Pixels
from un2clip.errors import DiskRefused, Stopped, UserError
from un2clip.hashes import tensors_sha256
from un2clip.methods.anchors import Bank, embed_bank
from un2clip.methods.building import new_objective
from un2clip.methods.conditions import Condition
from un2clip.methods.flops import per_image
from un2clip.methods.kept import ALIGNED, save_parts
from un2clip.methods.objective import Reconstruction
from un2clip.models.clip import Clip, encoder_sha256, load_clip, save_clip, text_sha256
from un2clip.stages.finetune_job import Finetune, Job
from un2clip.training.batches import local_batches
from un2clip.training.config import PhaseConfig
from un2clip.training.lock import Lock, locked
from un2clip.training.progress import Record
from un2clip.training.starting import start, train_phase


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
        seed: order of the images, and noise.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph for the state of trainings that are not finished; "" for none.
        shards: checked images; their captions are read only by methods with the caption-KL anchor. They may be of a
            bucket, `s3://bucket/folder`.
        backbones: clip/ and a folder a decoder, such as unclip/.
        latents: the cache of the VAE's latents, which may be empty.
        encoder: folder that gets the checkpoint, lineage.json and history.json; and condition/ or decoder/, if it
            trained; aligned/ of methods/kept.py.

    Raises:
        UserError: the parts do not fit, there are fewer images than a batch, memory is short, or the loss is not
            finite. In the last case the last good weights are in `encoder` all the same, and its lineage says so.
        Stopped: a signal asked for it; the same call goes on.
    """
    paths = {"shards": shards, "backbones": backbones, "latents": latents, "encoder": encoder}
    job = Job(params=params, method=method, seed=seed, device=device, checkpoints=checkpoints, **paths)
    params.phases_of(job.row)  # a wrong name is said before anything is started
    start("finetune", _finetune, job)


def _finetune(job: Job, device: torch.device) -> None:
    params, row = job.params, job.row
    clip = load_clip(job.backbones / "clip", device)
    clip.model.requires_grad_(False)
    decoder = open_decoder(
        row.decoder,
        job.backbones,
        scratch=params.scratch,
        image_px=clip.image_size[0],
        seed=job.seed,
        device=device,
    )
    if isinstance(decoder, Unclip):
        decoder.check_fits(clip.embed_dim)
    if isinstance(decoder, Pixels) and (said := decoder.see(job.backbones, params.perceptual)) and devices.rank() == 0:
        print(f"finetune: {said}")
    for phase in params.phases_of(row):
        decoder.check(phase.noise)
        copy.copy(decoder).resize(phase.image_px or decoder.image_px)
    loader.count(job.shards, "train", at_least=params.batch_size)
    if params.batch_size % devices.world_size():
        raise UserError(
            f"batch_size must be a multiple of the {devices.world_size()} processes, got {params.batch_size}"
        )
    parents = {
        "shards": digest(job.shards),
        "clip": encoder_sha256(job.backbones / "clip"),  # as its scores say it
        "generator": tensors_sha256(decoder.state_dict()),
    }
    # here, where the VAE is as it was read: in bf16 it would have another hash
    caches = [_cache(job, decoder, phase) for phase in params.phases_of(row)]
    if any(caches):
        parents["latents"] = latents_sha256(job.latents)
    if row.measures_statistics:
        _measure(job, clip, decoder, caches[0])
    banks = {name: embed_bank(clip, _bank(job, name)) for name in row.banks}
    text_before = text_sha256(clip.model)
    refers = params.compute.refer_every > 0
    objective = new_objective(
        row,
        clip,
        decoder,
        params.anchors,
        banks=banks,
        seed=job.seed,
        conditions=params.conditions,
        contrast=params.contrast,
        refers=refers,
    )
    for phase in params.phases_of(row):
        objective.check(phase.image_px or decoder.image_px)
    folder = job.state_folder(parents)
    with locked(folder) if folder and devices.rank() == 0 else nullcontext() as lock:
        _train_and_save(job, clip, objective, caches, parents, text_before, folder, lock)


def _train_and_save(
    job: Job,
    clip: Clip,
    objective: Reconstruction,
    caches: list[CachedLatents | None],
    parents: dict[str, str],
    text_before: str,
    folder: Path | None,
    lock: Lock | None,
) -> None:
    """Train, then write the encoder; the state, in `folder`, is removed at the end."""
    history: list[Record] = []
    aligned: list[tuple[Condition, Decoder]] = []
    failure: UserError | None = None
    try:
        _train_phases(job, clip, objective, caches, folder, lock, history, aligned)
        if lock is not None:
            lock.check()
    except Stopped as stopped:
        raise Stopped(f"{stopped}; the same command goes on", stopped.signal) from None
    except DiskRefused:
        raise
    except UserError as error:
        if not history:
            raise
        failure = UserError(f"{error}; the weights of step {len(history)}, the last good one, are in {job.encoder}")
    assert text_sha256(clip.model) == text_before, "a method must not touch the text tower"
    if devices.rank() == 0:
        _save(job, clip, objective, aligned)
        lineage = {
            "method": job.method,
            "seed": job.seed,
            "params": dataclasses.asdict(job.params),
            "steps_done": len(history),
            "corrupt": int(history[-1]["corrupt"]) if history else 0,
            "complete": failure is None,
            "parents": parents,
            "encoder_sha256": encoder_sha256(job.encoder),
            "text_sha256": text_before,
        }
        (job.encoder / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n")
        (job.encoder / "history.json").write_text(json.dumps(history) + "\n")
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    if failure is not None:
        raise failure


def _bank(job: Job, name: Bank) -> list[str]:
    if name == "words":
        return word_bank(job.shards, job.params.words, seed=job.seed)
    return caption_bank(job.shards, seed=job.seed, size=job.params.captions)


def _train_phases(
    job: Job,
    clip: Clip,
    objective: Reconstruction,
    caches: list[CachedLatents | None],
    folder: Path | None,
    lock: Lock | None,
    history: list[Record],
    aligned: list[tuple[Condition, Decoder]],
) -> None:
    """The phases of the row, one after the other; each goes on from its own state.

    Args:
        aligned: gets a copy of condition and decoder before the encoder first moves, where pictures are not random.
    """
    params, row = job.params, job.row
    entered = {name: value.clone() for name, value in clip.model.visual.state_dict().items()}
    done, own = 0, objective.decoder.image_px
    for number, (named, phase) in enumerate(zip(row.phases, params.phases_of(row), strict=True)):
        objective.decoder.resize(phase.image_px or own)
        if number and "encoder" in named.trains and not aligned and not objective.decoder.random:
            aligned.append(_copied(objective, own))
        if named.starts == "reference":
            clip.model.visual.load_state_dict(entered)
        train_phase(
            "finetune",
            objective,
            named.trains,
            phase,
            params.compute,
            functools.partial(_local_batches, job, clip, objective.decoder, phase, caches[number], done),
            history,
            number=number,
            of=len(row.phases),
            seed=job.seed,
            done=done,
            on_read=job.check_read,
            folder=folder,
            lock=lock,
            flops=per_image(objective, named.trains, clip.image_size, phase, cached=caches[number] is not None),
        )
        done += phase.steps
    objective.decoder.resize(own)


def _copied(objective: Reconstruction, image_px: int) -> tuple[Condition, Decoder]:
    """Condition and decoder as they are, without what only the loss reads."""
    assert isinstance(objective.decoder, Pixels)
    seen, objective.decoder.perceptual = objective.decoder.perceptual, None
    condition, decoder = copy.deepcopy((objective.condition, objective.decoder))
    objective.decoder.perceptual = seen
    decoder.resize(image_px)
    return condition, decoder


def _local_batches(
    job: Job, clip: Clip, decoder: Decoder, phase: PhaseConfig, cached: CachedLatents | None, done: int, step: int
) -> Iterator[loader.Batch]:
    return local_batches(
        dataclasses.replace(_reader(job, clip, decoder, cached), crop=phase.crop, seed=job.seed),
        lambda batch: decoder.target(batch, at_once=job.params.compute.max_per_device),
        batch_size=job.params.batch_size,
        seed=job.seed,
        step=done + step,
        workers=job.params.compute.workers,
        device=clip.device,
    )


def _cache(job: Job, decoder: Decoder, phase: PhaseConfig) -> CachedLatents | None:
    """The cached latents, where they are what this decoder makes of an image."""
    changed = phase.crop != loader.WHOLE or phase.image_px or job.params.faults.decoder
    if not isinstance(decoder, LatentDecoder) or changed:
        return None
    made_by = decoder.vae_sha256()
    if job.row.decoder == "text_to_image" and vae_of(job.latents) != made_by:
        return None  # the cache is the unCLIP's, which may have another VAE
    return open_latents(job.latents, job.shards, made_by)


def _reader(job: Job, clip: Clip, decoder: Decoder, cached: CachedLatents | None) -> loader.Reader:
    faults, cfg = job.params.faults, cast(dict[str, Any], clip.model.visual.preprocess_cfg)
    view = faults.decoder_view(loader.generator_view(decoder.image_px))
    preprocess = clip.preprocess_at(decoder.image_px) if decoder.as_read else clip.preprocess
    encoder_view = faults.encoder_view(preprocess, cfg["mean"], cfg["std"])
    reader = loader.open_split(job.shards, "train", encoder_view, view, cached)
    second = job.params.contrast.view if job.row.contrasts else None
    return dataclasses.replace(reader, second=second, ahead=job.params.shards_ahead)


def _measure(job: Job, clip: Clip, decoder: Decoder, cached: CachedLatents | None) -> None:
    """Give the unCLIP's normaliser the statistics of this encoder's embeddings."""
    assert isinstance(decoder, Unclip)
    reader = _reader(job, clip, decoder, cached)
    indices = loader.batched(loader.shuffled(reader.sizes, job.seed), job.params.compute.max_per_device)
    batches = loader.read(reader, indices, job.params.compute.workers)
    pixel_values = (batch["pixel_values"][batch["valid"]] for batch in batches)
    decoder.set_statistics(*measure_statistics(clip, pixel_values, at_most=job.params.statistics_images))


def _save(job: Job, clip: Clip, objective: Reconstruction, aligned: list[tuple[Condition, Decoder]]) -> None:
    """The encoder, and beside it whatever else trained."""
    save_clip(clip, job.encoder)
    parts = [
        (job.encoder, objective.condition, objective.decoder),
        *((job.encoder / ALIGNED, *each) for each in aligned),
    ]
    for folder, condition, decoder in parts:
        save_parts(job.row, condition, decoder, job.params.conditions, folder, job.backbones)
