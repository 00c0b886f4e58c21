"""Every line of timings that wants a GPU, in one command under nine minutes; one JSON, and a table on the screen.

    python -m timings.gpu --to gpu.json
    python -m timings.gpu --smallest --to gpu.json     narrow networks, also on a CPU: only that it runs

Weights are random and pictures are made here: no network is needed. timings/gpu.txt lists the wheels to take along to
a machine that has torch and nothing else. Lines, in this order: the card's rates of matrix products; the error of TF32
and bf16 against float32; training steps of ViT-L-14 through unCLIP-L against the plain loop; evaluation against a loop
of single images; how long compilation takes. What there is no time for is listed as left out; what does not fit into
memory is said to. Without --to the JSON is the last line.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch

from timings import evaluate as evaluating
from timings.training_step import Case, fill, networks, ours, race
from un2clip.config import build
from un2clip.datasets.loader import to_device
from un2clip.decoders import Cond
from un2clip.devices import autocast, matrix_rate, multiplying, relative_error
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.methods.building import new_objective
from un2clip.methods.flops import META, count_step
from un2clip.methods.table import get_method
from un2clip.stages.finetune_job import Finetune

LIMIT = 1e-3  # relative error of the loss
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
MINUTES = 8.5
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, help="file of the JSON")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no line is begun")
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    args = parser.parse_args()
    began, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.smallest:
        parser.error("torch sees no GPU; --smallest runs on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"machine": machine(device), "lines": [], "left_out": []}
        print("| line | of | result |\n|---|---|---|")
        for name, of, line in lines(device, Path(folder), args.smallest, found):
            if time.monotonic() - began > 60 * args.minutes:
                found["left_out"].append(f"{name} {of}")
                continue
            before = time.monotonic()
            try:
                with multiplying("fp32"):  # where a line says no other
                    result = line()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                result = {"out_of_memory": True}
            found["lines"].append({"line": name, "of": of, "took_s": time.monotonic() - before} | result)
            said = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
            print(f"| {name} | {of} | {said} |", flush=True)
            if args.to:
                args.to.write_text(json.dumps(found, indent=1) + "\n")  # after each: what cuts it off keeps the rest
    if not args.to:
        print(json.dumps(found))


def machine(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "open_clip": open_clip.__version__}
    return {"device": name, "python": sys.version.split()[0]} | versions


def lines(
    device: torch.device, folder: Path, smallest: bool, found: dict[str, Any]
) -> Iterator[tuple[str, str, Callable[[], Line]]]:
    """Name, of what, and what measures it. Rates are read by the lines of training, which say their share of them."""
    for precision in DTYPES:
        yield "rate", precision, partial(rate, device, precision, 64 if smallest else 0)
    case = new_case(device, folder, smallest)
    for precision in ["tf32"] if smallest else ["tf32", "bf16"]:  # most processors only imitate bf16
        yield "error", precision, partial(error, case, precision)
    work = operations(smallest)
    for precision, batch in [("fp32", 2)] if smallest else [("bf16", 16), ("bf16", 64), ("tf32", 16), ("fp32", 4)]:
        yield "step", f"{precision} {batch}", partial(step, case, precision, batch, smallest, work, found)
    for name in ["ViT-B-32"] if smallest else ["ViT-B-32", "ViT-L-14"]:
        yield "evaluate", name, partial(score, device, folder / name, name, smallest)
    if not smallest:  # it takes minutes of itself, and says nothing of a narrow network on a CPU
        yield "compile", "bf16 16", partial(compiling, case, 16)


def new_case(device: torch.device, folder: Path, smallest: bool) -> Case:
    """Networks and pictures for all lines of training."""
    clip, generator = networks("smallest" if smallest else "L", device)
    fill(folder, 8 if smallest else 128, generator.image_px)
    workers = 0 if smallest else 8
    return Case(clip=clip, generator=generator, folder=folder, batch=2, precision="fp32", workers=workers)


def rate(device: torch.device, precision: str, side: int) -> Line:
    """TFLOP/s of a product of square matrices."""
    with multiplying(precision):
        return {"tflops": matrix_rate(device, DTYPES[precision], side=side) / 1e12}


@torch.no_grad()
def error(case: Case, precision: str) -> Line:
    """Relative error of the loss and of the latents against float32, of the same pictures and noise."""
    rng, generator, noise = torch.Generator().manual_seed(0), case.generator, phase().noise
    size, side = case.clip.image_size, generator.image_px
    pixel_values = torch.randn(case.batch, 3, *size, generator=rng).to(case.device)
    images = torch.rand(case.batch, 3, side, side, generator=rng) * 2 - 1
    drawn = to_device(generator.draw(case.batch, rng, noise), case.device)
    found = []
    for kind in ("fp32", precision):  # bf16 comes last: it rounds the weights for good
        generator.prepare(dtype=DTYPES[kind])
        with multiplying(kind), autocast(case.device, kind):
            cond = Cond(vector=case.clip.model.visual(pixel_values).float())
            latents = generator.encode(images)
            loss = generator.loss(latents, cond, drawn)["diffusion_loss"].float().mean().item()
        found.append((torch.tensor(loss), latents))
    generator.prepare(dtype=torch.float32)
    off, of_latents = (relative_error(other, exact) for exact, other in zip(*found, strict=True))
    return {"loss": off, "latents": of_latents, "within_limit": off <= LIMIT}


def phase() -> Any:
    return build(Finetune, evaluating.PARAMS["finetune"], "finetune").phases["tune"]


def operations(smallest: bool) -> dict[str, float]:
    """Of an image in a step, by part; counted on the meta device."""
    clip, generator = networks("smallest" if smallest else "L", META)
    objective, row = new_objective(get_method("un2clip"), clip, generator, {}, seed=0), get_method("un2clip")
    counted = count_step(objective, row.phases[0].trains, clip.image_size, phase().noise, images=1)
    return {name: float(each.total) for name, each in counted.items()}


def step(case: Case, precision: str, batch: int, smallest: bool, work: dict[str, float], found: dict[str, Any]) -> Line:
    """Images a second of the plain loop and of ours, with the VAE in the step and with its latents cached."""
    case = replace(case, batch=batch, precision=precision)
    plain, own, cached = (batch / seconds for seconds in race(case, 1 if smallest else 6, 1 if smallest else 2))
    rates = {each["of"]: each["tflops"] for each in found["lines"] if each["line"] == "rate"}
    total = sum(work.values())
    shares = {"share": own * total, "cached_share": cached * (total - work["target"])}
    images = {"plain": plain, "ours": own, "cached": cached, "ratio": own / plain, "cached_ratio": cached / plain}
    return images | {name: each / 1e12 / rates[precision] for name, each in shares.items()}


def compiling(case: Case, batch: int) -> Line:
    """Seconds of the first step with torch.compile, and images a second afterwards, beside those without."""
    case, found = replace(case, batch=batch, precision="bf16"), {}
    for name, compiled in (("eager", False), ("compiled", True)):
        start = case.now()
        marks = ours(case, None, 8, compile=compiled)
        found |= {f"{name}_first_s": marks[0] - start, name: batch * 5 / (marks[-1] - marks[2])}
    return found


def score(device: torch.device, folder: Path, name: str, smallest: bool) -> Line:
    """Of each benchmark, how many times as fast as a loop of single images, and its seconds."""
    clip = evaluating.new_encoder(name, folder / "clip", smallest)
    clip.model.to(device)
    pairs, photographs = (1, 1) if smallest else (10, 40)
    evaluating.render(folder / "benchmarks", 224, pairs, photographs)
    chosen = evaluating.PARAMS["evaluate"]["segmentation"] | {"protocol": "sclip"}
    section = evaluating.PARAMS["evaluate"] | {"batch_size": 64, "segmentation": chosen}
    params, found = build(Evaluate, section, "evaluate"), Line()
    for benchmark, loop in evaluating.LOOPS.items():
        runs = (loop, get_benchmark(benchmark, "clip").run)
        data = folder / "benchmarks" / benchmark
        slow, fast = evaluating.race(1 if smallest else 2, *(partial(run, clip, data, params) for run in runs))
        found |= {benchmark: slow / fast, f"{benchmark}_s": fast}
    return found


if __name__ == "__main__":
    main()
