"""`make pair`: a CLIP and the unCLIP that inverts it, trained once for the laptop world, measured, and written to ship.

It runs the pipeline's own stages `shapes` and `backbones`. Same seed, same machine, same bytes; one that was cut off
goes on where it was.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from un2clip.config import build
from un2clip.decoders import load_generator
from un2clip.decoders.folder import copy_generator
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.evidence.scores import score_of
from un2clip.files.outputs import save_tensors
from un2clip.hashes import file_sha256
from un2clip.models.clip import load_clip
from un2clip.stages import stage_params
from un2clip.stages.backbones import make
from un2clip.stages.shapes import shapes
from un2clip.study import pair_measures
from un2clip.study.pair_measures import PairMeasures

MEASURES, README = "measures.json", "README.md"
#: Sections of the numbers that decide a pair.
SECTIONS = ("shapes", "backbones")


def make_pair(params: Mapping[str, Any], *, seed: int, to: Path, work: Path) -> None:
    """Write `to` with clip/ and unclip/ in half precision, measures.json and README.md.

    Args:
        params: all numbers, with the pair's overlay.
        seed: of the world, the initialisation, the order and the noise.
        work: folder for the world and the state, which may be deleted afterwards.
    """
    section, numbers = stage_params("backbones", params["backbones"]), {name: params[name] for name in SECTIONS}
    key = hashlib.sha256(json.dumps([numbers, seed], sort_keys=True).encode()).hexdigest()[:16]
    place, begun = work / key, time.monotonic()
    whole = not place.exists()  # else an earlier call has done a part of it
    if not (place / "rendered").exists():
        world = stage_params("shapes", params["shapes"])
        shapes(world, seed=seed, **{name: place / name for name in ("images", "benchmarks", "instructions")})
        (place / "rendered").touch()
    made, state = place / "backbones", place / "state"
    make(section, seed=seed, device="cpu", images=place / "images", backbones=made, state=state)
    minutes = round((time.monotonic() - begun) / 60, 1) if whole else None
    for part in ("clip", "unclip"):
        shutil.rmtree(to / part, ignore_errors=True)
    copy_generator(made / "unclip", to / "unclip")
    shutil.copyfile(made / "unclip" / "un2clip.json", to / "unclip" / "un2clip.json")
    shutil.copytree(made / "clip", to / "clip")
    for file in to.rglob("*.safetensors"):
        halve(file)
    measured = {"seed": seed, "minutes": minutes, "numbers": numbers}
    measured |= measure_pair(params, seed=seed, pair=to, benchmarks=place / "benchmarks")
    measured["sha256"] = {str(file.relative_to(to)): file_sha256(file) for file in sorted(to.rglob("*.safetensors"))}
    (to / MEASURES).write_text(json.dumps(measured, indent=1) + "\n")
    (to / README).write_text(describe(measured))
    print(f"{to}: {sum(file.stat().st_size for file in to.rglob('*') if file.is_file()) / 2**20:.1f} MiB")


def halve(file: Path) -> None:
    """Write the floating-point tensors of a safetensors file in half precision, in place."""
    tensors = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in load_file(file).items()}
    partial = file.with_suffix(".partial")
    save_tensors(tensors, partial, {"format": "pt"})
    partial.replace(file)


def measure_pair(params: Mapping[str, Any], *, seed: int, pair: Path, benchmarks: Path) -> dict[str, Any]:
    """What is measured on a pair, and which of its conditions hold. No tuned encoder is looked at."""
    section, evaluate = build(PairMeasures, params["pair"], "pair"), build(Evaluate, params["evaluate"], "evaluate")
    clip, generator = load_clip(pair / "clip"), load_generator(pair / "unclip")
    scores: dict[str, float] = {}
    for name in ("zeroshot", "mmvp_vlm"):
        result = get_benchmark(name, "clip").run(clip, benchmarks / name, evaluate)
        scores[name] = score_of(result.items, result.unit)
    real, drawn = pair_measures.named(clip, generator, seed, section)
    measured: dict[str, Any] = {
        "scenes": section.scenes,
        "zeroshot": scores["zeroshot"],
        "pairs": scores["mmvp_vlm"],
        "vae_db": pair_measures.vae_decibels(generator, pair_measures.held_images(clip, generator, seed, section)),
        "statements": pair_measures.statement_cosines(clip, seed, section),
        "heard": pair_measures.heard(clip, generator, seed, section),
        "turned": pair_measures.turned(clip, generator, seed, section),
        "real": real,
        "drawn": drawn,
    }
    return measured | {"conditions": pair_measures.conditions(measured, section.noise_levels, section.wanted)}


def describe(measured: Mapping[str, Any]) -> str:
    """The README of a pair: what it is, and what was measured."""
    clip, unet = (measured["numbers"]["backbones"][name] for name in ("clip", "unet"))
    phases, captions = measured["numbers"]["backbones"]["phases"], measured["numbers"]["shapes"]["captions"]
    lines = [
        "# A laptop pair\n",
        "A CLIP and the unCLIP that inverts it, trained for the laptop world, in half precision. `make pair` makes",
        "both, and this page.\n",
        f"* seed {measured['seed']}; world and training took "
        + (f"{measured['minutes']} minutes of one thread" if measured["minutes"] else "more than one call"),
        f"* {measured['numbers']['shapes']['train_scenes']} scenes, whose captions name an object with probability "
        f"{captions['object']}, its colour {captions['colour']} and each detail {captions['detail']}",
        f"* CLIP: embeddings of {clip['embed_dim']} numbers; the text tower learned the words first "
        f"({phases['words']['steps']} steps) and stayed, the image tower learned from the captioned images "
        f"({phases['clip']['steps']} steps)",
        f"* unCLIP: U-Net {'/'.join(map(str, unet['block_out_channels']))}, {phases['unet']['steps']} steps of "
        f"{unet['batch_size']} from nothing, all noise levels of the embedding\n",
        "## Measured on held-out scenes, before any encoder was tuned\n",
        f"* zero-shot {measured['zeroshot']:.1f} %, pairs {measured['pairs']:.1f} %, VAE {measured['vae_db']:.1f} dB",
        "* a classifier of real scenes names rightly (%): "
        + "; ".join(
            f"{where} object {each['object']:.1f}, colour {each['colour']:.1f}"
            for where, each in {
                "real scenes:": measured["real"],
                **{f"drawn at guidance {scale}:": each for scale, each in measured["drawn"].items()},
            }.items()
        )
        + "\n",
        "| condition | holds |\n|---|---|",
        *(f"| {name} | {'yes' if holds else '**no**'} |" for name, holds in measured["conditions"].items()),
        "\n## Loss told of a scene with one attribute changed, minus loss told of the scene itself\n",
        f"In thousandths, mean and standard error, n = {measured['scenes']} scenes each. The generator hears what is",
        "well above 0.\n",
    ]
    levels = list(next(iter(measured["heard"].values())))
    lines += ["| attribute | " + " | ".join(f"noise level {level}" for level in levels) + " |"]
    lines += ["|---" * (1 + len(levels)) + "|"]
    for name, each in measured["heard"].items():
        lines += [f"| {name} | " + " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in each.values()) + " |"]
    lines += [
        "\n## How far noise turns the loss's wish towards the text's direction\n",
        "Cosine of (C + sigma² I)^-1 d and the step between a pair's statements (docs/method.md).\n",
        "| attribute | " + " | ".join(f"noise level {level}" for level in levels) + " |",
        "|---" * (1 + len(levels)) + "|",
    ]
    for name, each in measured["turned"].items():
        lines += [f"| {name} | " + " | ".join(f"{cosine:.2f}" for cosine in each.values()) + " |"]
    lines += ["\n## Cosine of the two statements of a pair\n", "| type | cosine |\n|---|---|"]
    lines += [f"| {name} | {cosine:.2f} |" for name, cosine in measured["statements"].items()]
    lines += ["\n## Hashes\n", "| file | SHA-256 |\n|---|---|"]
    lines += [f"| {file} | `{digest}` |" for file, digest in measured["sha256"].items()]
    return "\n".join(lines) + "\n"
