"""One training step of any overlay at its full width, without any published weights: random ones of the same shapes.

    python -m timings.full_width_step                 the paper's
    python -m timings.full_width_step --checkpointing configs/diva.yaml configs/openai-vit-l-14.yaml
    python -m timings.full_width_step --smallest      shapes alone, on torch's meta device: only that it runs

Target (the VAE), forward and backward of every noise sample, the optimiser: the last phase of the row, which is the one
that trains the encoder. Prints a row for a table: what, loss, seconds of each part, peak memory of the process.
"""

import argparse
import dataclasses
import resource
import time
from pathlib import Path

import torch

from un2clip.config import build, read_params
from un2clip.datasets.loader import to_device
from un2clip.methods.table import get_method
from un2clip.planning.published import new_reconstruction
from un2clip.stages.backbones import Backbones
from un2clip.stages.finetune_job import Finetune
from un2clip.training.replicas import Replicas

ROOT = Path(__file__).parents[1]
PAPER = [ROOT / "configs/paper.yaml", ROOT / "configs/openai-vit-l-14.yaml"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overlays", nargs="*", type=Path, help="laid over params.yaml; none: the paper's")
    parser.add_argument("--frozen", choices=("fp32", "bf16"), default="fp32", help="what is frozen is held in")
    parser.add_argument("--checkpointing", action="store_true", help="of activations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    args = parser.parse_args()
    torch.manual_seed(0)
    device, rng = torch.device("meta" if args.smallest else args.device), torch.Generator().manual_seed(0)
    params = read_params(ROOT / "params.yaml", args.overlays or PAPER)
    row = get_method(params["method"])
    finetune = build(Finetune, params["finetune"], "finetune")
    with device:
        objective, size = new_reconstruction(build(Backbones, params["backbones"], "backbones"), finetune, row)
    phase, numbers = row.phases[-1], finetune.phases_of(row)[-1]
    own = objective.decoder.image_px
    objective.decoder.resize(numbers.image_px or own)
    compute = dataclasses.replace(finetune.compute, frozen=args.frozen, gradient_checkpointing=args.checkpointing)
    replicas = Replicas(objective, phase.trains, numbers, compute, seed=0)
    px = objective.decoder.image_px
    read = (px, px) if objective.decoder.as_read else size
    images = torch.rand(args.batch, 3, px, px, generator=rng) * 2 - 1
    batch = {
        "images": images.to(device),
        "pixel_values": torch.randn(args.batch, 3, *read, generator=rng).to(device),
        "view": torch.randn(args.batch, 3, *read, generator=rng).to(device),
        "valid": torch.ones(args.batch, dtype=torch.bool, device=device),
        "keys": [str(i) for i in range(args.batch)],
    }
    for step in range(args.steps):
        marks, cpu = [_now(device)], time.process_time()
        batch["target"] = objective.decoder.target(batch)
        marks.append(_now(device))
        forward = backward = 0.0
        for _ in range(numbers.noise_samples):
            noise_sample = to_device(objective.draw(batch, args.batch, rng, numbers.noise), device)
            loss = objective(batch, noise_sample)["loss"].mean()
            begun = _now(device)
            forward += begun - marks[-1]
            (loss / numbers.noise_samples).backward()
            marks.append(_now(device))
            backward += marks[-1] - begun
        norm = float("nan")
        if not loss.is_meta:  # nothing is computed there, and torch's fused AdamW refuses it
            norm = replicas.clip()
            replicas.step(step)
        replicas.optimizer.zero_grad(set_to_none=True)
        marks.append(_now(device))
        shown = {
            "row": params["method"],
            "phase": phase.numbers,
            "frozen in": args.frozen,
            "checkpointing": "yes" if args.checkpointing else "no",
            "device": str(device),
            "batch": str(args.batch),
            "target": " x ".join(map(str, batch["target"].shape[1:])),
            "noise samples": str(numbers.noise_samples),
            "loss": f"{float('nan') if loss.is_meta else loss.item():.4g}",
            "gradient norm": f"{norm:.4g}",
            "target s": f"{marks[1] - marks[0]:.1f}",
            "forward s": f"{forward:.1f}",
            "backward s": f"{backward:.1f}",
            "optimiser s": f"{marks[-1] - marks[-2]:.1f}",
            "step s": f"{marks[-1] - marks[0]:.1f}",
            "CPU s": f"{time.process_time() - cpu:.1f}",
            "peak GiB": f"{_peak(device):.1f}",
        }
        if step == 0:
            print(f"| {' | '.join(shown)} |\n|{'---|' * len(shown)}")
        print(f"| {' | '.join(shown.values())} |", flush=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: torch.device) -> float:
    """GiB, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
