"""Stage `assistant`: a language model learns to read the encoder, as LLaVA-1.5: aligned, then tuned to instructions."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from un2clip import devices
from un2clip.assistants.building import Assistant as Llava
from un2clip.assistants.building import build_assistant, save_assistant
from un2clip.assistants.conversations import (
    ALIGNMENT,
    IMAGES,
    INSTRUCTION,
    Conversation,
    read_conversations,
    texts_of,
)
from un2clip.assistants.language import open_language
from un2clip.assistants.next_token import NextToken
from un2clip.assistants.prompts import PLAIN
from un2clip.assistants.reading import Talks, batches, cached_features, grouped, pictures_of
from un2clip.datasets.loader import Batch
from un2clip.errors import Stopped, UserError
from un2clip.evidence.languages import AssistantLineage
from un2clip.evidence.lineage import HISTORY, LINEAGE
from un2clip.files.outputs import replaced, write_json
from un2clip.hashes import file_sha256, tensors_sha256
from un2clip.models.clip import encoder_sha256, load_clip
from un2clip.stages.assistant_job import PHASES, Assistant, Job
from un2clip.training.lock import Lock, locked
from un2clip.training.progress import Record
from un2clip.training.starting import start, train_phase

FILES = {"alignment": ALIGNMENT, "instruction": INSTRUCTION}


def assistant(
    params: Assistant,
    *,
    language_seed: int,
    device: str,
    checkpoints: str,
    instructions: Path,
    encoder: Path,
    assistant: Path,
) -> None:
    """Train one assistant. A training that was cut off goes on where it was.

    With one seed the assistants of all encoders begin alike and meet the same conversations in the same order.

    Args:
        language_seed: of the language model: what begins from scratch, and the order.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph for the state of trainings that are not finished; "" for none.
        instructions: alignment.json, instruction.json (LLaVA's format) and images/.
        encoder: whose patch tokens are read: a folder of an encoder, or what `backbones` made, whose clip/ it is then.
        assistant: folder that gets the model as transformers saves it, lineage.json and history.json.

    Raises:
        UserError: the parts do not fit, a conversation is broken, memory is short, or the loss is not finite.
        Stopped: a signal asked for it; the same call goes on.
    """
    start(
        "assistant", _assistant,
        Job(params=params, seed=language_seed, device=device, checkpoints=checkpoints, instructions=instructions,
            encoder=encoder, assistant=assistant),
    )  # fmt: skip


def _assistant(job: Job, device: torch.device) -> None:
    params, world = job.params, devices.world_size()
    images = job.instructions / IMAGES
    talks = {
        phase: read_conversations(job.instructions / file, images, captions=phase == "alignment")
        for phase, file in FILES.items()
    }
    for phase in PHASES:
        size = getattr(params.batch_size, phase)
        if size % world:
            raise UserError(f"assistant.batch_size.{phase} must be a multiple of the {world} processes, got {size}")
        next(grouped(talks[phase], size, job.seed))
    texts = (text for each in talks.values() for text in texts_of(each))
    language, tokenizer = open_language(params.language, params.toy, texts, job.seed)
    longest = getattr(language.config, "max_position_embeddings", params.max_tokens)
    if params.max_tokens > longest:
        raise UserError(f"assistant.max_tokens is {params.max_tokens}, and the language model reads {longest} at most")
    llava = build_assistant(
        load_clip(job.folder),
        language,
        tokenizer,
        layer=params.layer,
        system=params.system,
        seed=job.seed,
        encoder=str(job.folder),
    )
    parents = {
        "encoder": encoder_sha256(job.folder),  # as the encoder's own lineage and scores say it
        "language": llava.language_sha256(),
        "pictures": _pictures_sha256(talks, images),
        **{phase: file_sha256(job.instructions / file) for phase, file in FILES.items()},
    }
    folder = job.state_folder(parents)
    llava.model.to(device)
    history: list[Record] = []
    with locked(folder) if folder and devices.rank() == 0 else nullcontext() as lock:
        try:
            _train(job, llava, talks, folder, lock, history)
            if lock is not None:
                lock.check()
        except Stopped as stopped:
            raise Stopped(f"{stopped}; the same command goes on", stopped.signal) from None
        if devices.rank() == 0:
            _save(job, llava, parents, history)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _train(
    job: Job,
    llava: Llava,
    talks: dict[str, list[Conversation]],
    folder: Path | None,
    lock: Lock | None,
    history: list[Record],
) -> None:
    """Both phases, one after the other; each goes on from its own state."""
    params, objective, done = job.params, NextToken(llava.model), 0
    rows = pictures_of([talk for each in talks.values() for talk in each]) if params.cache else None
    known: dict[str, torch.Tensor] = {}
    for number, (name, trains) in enumerate(PHASES.items()):
        phase = params.phases[name]
        train_phase(
            "assistant",
            objective,
            trains,
            phase,
            params.compute,
            functools.partial(_batches, job, llava, objective, talks[name], name, rows, known),
            history,
            number=number,
            of=len(PHASES),
            seed=job.seed,
            done=done,
            on_read=job.check_read,
            folder=folder,
            lock=lock,
        )
        done += phase.steps


def _batches(
    job: Job,
    llava: Llava,
    objective: NextToken,
    talks: list[Conversation],
    phase: str,
    rows: dict[str, int] | None,
    known: dict[str, torch.Tensor],
    step: int,
) -> Iterator[Batch]:
    """`known`: way of a picture -> the features of all pictures, which both phases read where they have one way."""
    params, device = job.params, llava.model.device
    way = getattr(params.pictures, phase)
    pictures = llava.pictures(way)
    read = Talks(
        conversations=talks,
        images=job.instructions / IMAGES,
        tokenizer=llava.tokenizer,
        template=PLAIN if phase == "alignment" else llava.processor.chat_template,
        image_tokens=llava.image_tokens,
        max_tokens=params.max_tokens,
        view=functools.partial(_view, pictures),
        side=llava.model.config.vision_config.image_size,
        rows=rows,
    )
    if rows is not None and way not in known:
        known[way] = cached_features(read, objective.features, params.compute.max_per_device)
    return batches(
        read,
        batch_size=getattr(params.batch_size, phase),
        seed=job.seed,
        step=step,
        workers=params.compute.workers,
        device=device,
        features=known.get(way),
    )


def _view(pictures: object, image: object) -> torch.Tensor:
    """(3, H, W) float32 of one picture."""
    view: torch.Tensor = pictures(images=image, return_tensors="pt")["pixel_values"][0]  # type: ignore[operator]
    return view


def _pictures_sha256(talks: dict[str, list[Conversation]], images: Path) -> str:
    """Hash of names and sizes of all pictures: the contents of LLaVA's are some hundred gigabytes."""
    digest = hashlib.sha256()
    for image in sorted({talk.image for each in talks.values() for talk in each} - {""}):
        digest.update(f"{image} {(images / image).stat().st_size}\n".encode())
    return digest.hexdigest()


def _save(job: Job, llava: Llava, parents: dict[str, str], history: list[Record]) -> None:
    """The folder, whole or not at all."""
    with replaced(job.assistant) as folder:
        save_assistant(llava, folder, getattr(torch, job.params.dtype))
        lineage = AssistantLineage(
            method=job.method,
            seed=job.seed,
            params=dataclasses.asdict(job.params),
            steps_done=len(history),
            corrupt=int(history[-1]["corrupt"]) if history else 0,
            parents=parents,
            assistant_sha256=tensors_sha256(llava.model.state_dict()),
        )
        write_json(folder / LINEAGE, dataclasses.asdict(lineage))
        (folder / HISTORY).write_text(json.dumps(history) + "\n")
