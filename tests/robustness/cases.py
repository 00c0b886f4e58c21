"""What is mutated: a file of each kind that is read, made by the real stages, and the function that reads it."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from un2clip.config import build, flatten, lookup, read_params
from un2clip.datasets.latents import open_latents, read_cache
from un2clip.datasets.shards import check_shard, digest, read_index, samples
from un2clip.decoders import load_generator
from un2clip.decoders.kinds import load_decoder, save_decoder
from un2clip.decoders.pixels import Pixels, PixelsSize
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks.mmvp_vlm import read_questions
from un2clip.evaluation.benchmarks.sugarcrepe import read_rows
from un2clip.evaluation.calibration import grades
from un2clip.evaluation.classification import open_classification
from un2clip.evaluation.dense.layouts import read_data_set
from un2clip.evaluation.dense.masks import read_mask
from un2clip.evaluation.readers import data_sha256, locked_revision
from un2clip.evidence.items import Item
from un2clip.evidence.lineage import encoder_pair, read_history, read_lineage, tuned_pairs
from un2clip.evidence.report import read_report
from un2clip.evidence.scores import Scores, load_scores
from un2clip.evidence.summary import read_decision
from un2clip.hashes import tensors_sha256
from un2clip.models.clip import encoder_sha256, load_clip, text_sha256
from un2clip.sources.catalogue import CATALOGUE, catalogue
from un2clip.sources.download.rows import read_lists
from un2clip.stages import STAGES, stage_params
from un2clip.stages.compare import Compare, compare
from un2clip.stages.ingest import Ingest, ingest
from un2clip.stages.promote import Promote, promote
from un2clip.training.checkpoints import Checkpoints

Read = Callable[[Path], Any]
RED = torch.zeros(3, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of file.

    Attributes:
        name: as the table has it.
        files: paths or patterns below the world's folder; one of them is mutated at a time.
        read: the world's folder -> whatever follows from the file, comparable by its text.
        own: whether a stage writes it, so that another shape than it writes is no legal file of the kind.
        share: how often it is drawn; slow readers less.
    """

    name: str
    files: tuple[str, ...]
    read: Read
    own: bool = True
    share: float = 1.0


def make_world(tiny: Any, folder: Path) -> Path:
    """A folder with a file of every kind; the first stages' come from the tiny pipeline of the tests."""
    for name in ("shards", "backbones", "latents", "benchmarks"):
        shutil.copytree(getattr(tiny, name), folder / name)
    for path in ("backbones/unclip/image_encoder", "backbones/text_to_image"):
        shutil.rmtree(folder / path, ignore_errors=True)
    (folder / "raw").mkdir()
    shutil.copy(tiny.images / "heldout/00000.tar", folder / "raw")
    (folder / "vae_sha256").write_text(load_generator(folder / "backbones/unclip").vae_sha256())
    _evidence(tiny, folder)
    _numbers(tiny, folder)
    _benchmarks(folder)
    size = PixelsSize(latent_channels=4, decoder_block_out_channels=(8, 8), decoder_layers_per_block=(1, 1))
    save_decoder("pixels", Pixels.scratch(32, size), folder / "pixels", folder)
    state = Checkpoints(folder=folder / "state", every=1, keep=1, final=False, tags={"mlflow_run": None})
    state.save(1, {"a": torch.ones(3)}, [{"step": 1.0, "loss": 0.5}])
    return folder


def _evidence(tiny: Any, folder: Path) -> None:
    """A tuned encoder that is the reference, with scores, a report and a decision."""
    encoder = folder / "encoder"
    shutil.copytree(folder / "backbones/clip", encoder)
    clip, sha256 = load_clip(encoder), encoder_sha256(encoder)
    lineage = {
        "method": "un2clip", "seed": 3, "params": tiny.params["finetune"], "steps_done": 2, "corrupt": 0,
        "complete": True, "parents": {"shards": "a" * 64, "clip": sha256, "generator": "b" * 64},
        "encoder_sha256": sha256, "text_sha256": text_sha256(clip.model),
    }  # fmt: skip
    (encoder / "lineage.json").write_text(json.dumps(lineage, indent=2))
    history = [{"step": i, "diffusion_loss": 1.5 - i / 8, "lr": 1e-5, "corrupt": 0} for i in range(1, 5)]
    (encoder / "history.json").write_text(json.dumps(history))
    for role, method in (("reference", "reference"), ("tuned", "un2clip")):
        items = tuple(Item(id=f"{i}", type="ab"[i % 2], value=float(i % 3 == 0 or role == "tuned")) for i in range(12))
        Scores(
            benchmark="mmvp_vlm", role=role, method=method, unit="%", protocol="p", data_sha256="d" * 64,
            encoder_sha256=sha256, items=items,
        ).save(folder / f"scores/{role}.json")  # fmt: skip
    numbers = Compare(confidence=0.95, power=0.8, resamples=100)
    names = {"scores": [folder / "scores"], "encoder": encoder, "report": folder / "report"}
    compare(numbers, seed=0, reconstructions=folder / "none", **names)
    rules = [{"benchmark": "mmvp_vlm", "gain_above": 0.0, "data_sha256": ""}]
    section = build(Promote, tiny.params["promote"] | {"rules": rules}, "promote")
    promote(section, compare=numbers, seed=0, decision=folder / "decision", **names)


def _numbers(tiny: Any, folder: Path) -> None:
    (folder / "numbers").mkdir()
    (folder / "numbers/params.yaml").write_text(yaml.safe_dump(tiny.params, sort_keys=False))
    overlay = {"seed": 4, "finetune": {"batch_size": 4, "anchors": {"captions": 0.5}}, "backbones": {"encoder": {}}}
    (folder / "numbers/overlay.yaml").write_text(yaml.safe_dump(overlay))
    (folder / "numbers/catalogue.yaml").write_text(CATALOGUE.read_text())


def _benchmarks(folder: Path) -> None:
    made = folder / "benchmarks"
    (made / "sugarcrepe/images").mkdir(parents=True)
    tree = made / "mmvp_vlm/MLLM_VLM Images"
    photograph = next(tree.rglob("*.jpg"))
    shutil.copy(photograph, made / "sugarcrepe/images/a.jpg")
    row = {"filename": "a.jpg", "caption": "a dog", "negative_caption": "a cat"}
    (made / "sugarcrepe/add_att.json").write_text(json.dumps({"0": row, "1": row | {"caption": "a bird"}}))
    lock = {"location": "a/b", "revision": "c" * 40, "sha256": {"Questions.csv": "d" * 64}}
    (made / "mmvp_vlm.lock.yaml").write_text(yaml.safe_dump(lock))
    record = {
        "model": "m",
        "data_sha256": data_sha256(made / "mmvp_vlm"),
        "grade": "close",
        "passed": True,
        "apart": {"t": 2},
    }
    (made / "mmvp_vlm.calibration.m.json").write_text(json.dumps(record))
    (folder / "lists").mkdir()
    rows = [("a dog", "https://example.com/1.jpg"), ("a cat", "https://example.com/2.jpg")]
    (folder / "lists/a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    with (folder / "lists/b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("caption", "url"), *rows])


def _shards(world: Path) -> Any:
    index = read_index(world / "shards")
    for split, listed in index.splits.items():
        for shard in listed:
            check_shard(world / "shards" / split / shard.name, shard)
    return dataclasses.asdict(index), index.totals(), digest(world / "shards")


def _samples(world: Path) -> Any:
    index = _shards(world)
    return index, [(each.key, each.caption, each.image.tobytes()) for each in samples(world / "shards/heldout")]


def _latents(world: Path) -> Any:
    cache = read_cache(world / "latents")
    opened = open_latents(world / "latents", world / "shards", (world / "vae_sha256").read_text())
    assert opened is not None
    tars = sorted((world / "shards").glob("*/*.tar"))
    return cache, [opened.read(tar, 0).tolist() for tar in tars]


def _ingest(world: Path) -> Any:
    section = Ingest(
        short_side_px=64, max_megapixels=1.0, max_aspect_ratio=20.0, samples_per_shard=100,
        heldout_fraction=0.2, duplicates="keep", near_distance=0, processes=1, engine="processes",
    )  # fmt: skip
    ingest(section, images=world / "raw", shards=world / "fresh")
    index = read_index(world / "fresh")
    return index, digest(world / "fresh")


def _clip(world: Path) -> Any:
    clip = load_clip(world / "encoder")
    images, texts = clip.embed(torch.zeros(1, 3, *clip.image_size)), clip.embed_texts(["a dog"])
    return encoder_sha256(world / "encoder"), images.tolist(), texts.tolist()


def _generator(world: Path) -> Any:
    generator = load_generator(world / "backbones/unclip")
    numbers = generator.image_px, generator.num_timesteps, generator.scheduler.config.prediction_type
    schedules = generator.scheduler.alphas_cumprod, generator.image_noising_scheduler.alphas_cumprod
    prompts = generator.prompt_embeds, generator.empty_prompt_embeds
    return numbers, tensors_sha256(generator.state_dict()), [each.tolist() for each in (*schedules, *prompts)]


def _options(world: Path) -> Any:
    from un2clip.decoders import Options

    return Options.of(world / "backbones/unclip")


def _pixels(world: Path) -> Any:
    decoder = load_decoder(world / "pixels")
    assert isinstance(decoder, Pixels)
    return decoder.image_px, decoder.channels, tensors_sha256(decoder.state_dict())


def _state(world: Path) -> Any:
    saved = Checkpoints(folder=world / "state", every=1, keep=1, final=False, tags={}).newest()
    if saved is None:
        raise UserError("the state is damaged, as is said on stderr, and the training begins anew")
    return saved.step, saved.history, tensors_sha256(saved.tensors)


def _params(world: Path) -> Any:
    params = read_params(world / "numbers/params.yaml", [world / "numbers/overlay.yaml"])
    return [stage_params(name, lookup(params, name, "section")) for name in STAGES], flatten(params)


def _evidence_of(world: Path) -> Any:
    lineage = read_lineage(world / "encoder")
    return lineage, encoder_pair(world / "backbones", world / "encoder"), tuned_pairs([world / "scores"], lineage)


def _masks(world: Path) -> Any:
    data = read_data_set(world / "benchmarks/segmentation")
    first = data.photographs[0]
    return data, read_mask(data, first, 64, 64).tolist()


def _classification(world: Path) -> Any:
    data = open_classification(world / "benchmarks/zeroshot", lambda image: RED)
    return data.names, data.templates, [(key, label) for key, _, label in (sample() for sample in data.samples)]


def _decision(world: Path) -> Any:
    decided, done = read_decision(world / "decision")
    return decided.passed, [rule.sentence for rule in decided.rules], decided.objections, done


def _lists(world: Path) -> Any:
    table, malformed = read_lists(sorted((world / "lists").iterdir()), "caption", "url")
    if malformed:
        raise UserError(f"{malformed} malformed rows, which the command reports and leaves out")
    return table.to_pylist()


def _questions(world: Path) -> Any:
    return read_questions(world / "benchmarks/mmvp_vlm")


CASES = (
    Case(name="index.json", files=("shards/index.json",), read=_shards, share=2),
    Case(name="a shard", files=("shards/heldout/*.tar",), read=_samples),
    Case(name="an image-text tar, by ingest", files=("raw/*.tar",), read=_ingest, own=False, share=0.3),
    Case(name="latents.json", files=("latents/latents.json",), read=_latents, share=0.5),
    Case(name="a file of latents", files=("latents/*/*.safetensors",), read=_latents, share=0.3),
    Case(name="lineage.json", files=("encoder/lineage.json",), read=_evidence_of, share=2),
    Case(name="history.json", files=("encoder/history.json",), own=False,  # its curves have any names

         read=lambda world: read_history(world / "encoder/history.json")),
    Case(name="scores", files=("scores/*.json",), read=_evidence_of, share=2),
    Case(name="scores, one file", files=("scores/tuned.json",),
         read=lambda world: load_scores(world / "scores/tuned.json")),
    Case(name="report.json", files=("report/report.json",), share=2,
         read=lambda world: read_report(world / "report/report.json")),
    Case(name="decision.json, registry.json", files=("decision/*.json",),
         read=_decision),
    Case(name="state.json, state.safetensors", files=("state/*/*",), read=_state, own=True, share=0.5),
    Case(name="open_clip_config.json", files=("encoder/open_clip_config.json",), read=_clip, own=False),
    Case(name="a CLIP's weights", files=("encoder/*.safetensors",), read=_clip, share=0.5),
    Case(name="un2clip.json", files=("backbones/unclip/un2clip.json",), read=_options, own=False),
    Case(name="a generator's JSON", files=("backbones/unclip/*.json", "backbones/unclip/*/*.json"), read=_generator,
         own=False, share=2),
    Case(name="a generator's weights", files=("backbones/unclip/*/*.safetensors",), read=_generator),
    Case(name="decoder.json", files=("pixels/decoder.json",), read=_pixels, share=0.5),
    Case(name="a decoder's weights", files=("pixels/*.safetensors",), read=_pixels, share=0.5),
    Case(name="params.yaml", files=("numbers/params.yaml",), read=_params, own=False, share=2),
    Case(name="an overlay", files=("numbers/overlay.yaml",), read=_params, own=False),
    Case(name="catalogue.yaml", files=("numbers/catalogue.yaml",), own=False,
         read=lambda world: catalogue(world / "numbers/catalogue.yaml")),
    Case(name="NAME.lock.yaml", files=("benchmarks/mmvp_vlm.lock.yaml",), own=False,
         read=lambda world: locked_revision(world / "benchmarks/mmvp_vlm", "Questions.csv")),
    Case(name="a calibration's record", files=("benchmarks/mmvp_vlm.calibration.m.json",), share=0.5,
         read=lambda world: grades(world / "benchmarks/mmvp_vlm")),
    Case(name="Questions.csv", files=("benchmarks/mmvp_vlm/Questions.csv",), read=_questions, own=False),
    Case(name="SugarCrepe's JSON", files=("benchmarks/sugarcrepe/*.json",), own=False,
         read=lambda world: read_rows(world / "benchmarks/sugarcrepe")),
    Case(name="segmentation.yaml", files=("benchmarks/segmentation/segmentation.yaml",), read=_masks,
         own=False, share=0.5),
    Case(name="classes.txt, val.txt", read=_masks, own=False, files=(
        "benchmarks/segmentation/classes.txt", "benchmarks/segmentation/*/ImageSets/*/val.txt")),
    Case(name="a mask", files=("benchmarks/segmentation/*/SegmentationClass/000000.png",), read=_masks,
         own=False, share=0.5),
    Case(name="classnames.txt, templates, nshards.txt", read=_classification, own=False, files=(
        "benchmarks/zeroshot/*.txt", "benchmarks/zeroshot/test/*.txt")),
    Case(name="a labelled tar", files=("benchmarks/zeroshot/test/*.tar",), read=_classification,
         own=False, share=0.5),
    Case(name="lists of URLs", files=("lists/*",), own=False,
         read=_lists),
)  # fmt: skip
