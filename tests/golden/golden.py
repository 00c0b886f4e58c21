"""What twenty steps of every phase give at toy size, and which machine said so: `make golden` writes golden.json.

Losses are the same on every machine within 1e-6. Bytes are the same only where the processor, torch and the number of
threads are, so `machine` is recorded beside them.
"""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.conftest import Tiny, make_tiny
from un2clip.config import merge
from un2clip.hashes import file_sha256
from un2clip.methods.table import METHODS
from un2clip.stages import run_stage

FILE = Path(__file__).with_name("golden.json")
STEPS = 20
SCORED = "un2clip"  # the method whose encoder is scored
#: Kinds of vector instructions: the libraries beneath torch choose their kernels by them.
VECTORS = ("sse", "ssse", "avx", "fma", "f16c", "bf16", "amx", "asimd", "sve")


def machine() -> dict[str, Any]:
    """All that the bytes depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = about.get("flags", about.get("Features", "")).split()
    return {
        "processor": f"{platform.machine()} {about.get('vendor_id', about.get('CPU implementer', ''))}",
        "vectors": " ".join(sorted(flag for flag in flags if flag.startswith(VECTORS))),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def train(tiny: Tiny, method: str, encoder: Path) -> list[dict[str, float]]:
    """Twenty steps of each phase of one method by the stage itself; its history."""
    phases = {phase.numbers: {"steps": STEPS} for phase in METHODS[method].phases}
    section = merge(tiny.params["finetune"], {"phases": phases})
    names = {"method": method, "seed": 3, "device": "cpu", "checkpoints": ""}
    folders = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents, "encoder": encoder}
    run_stage("finetune", section, **names, **folders)
    history: list[dict[str, float]] = json.loads((encoder / "history.json").read_text())
    return history


def score(tiny: Tiny, encoder: Path, scores: Path) -> None:
    """The scores files of one encoder: the diffusion loss and every benchmark of the laptop world."""
    folders = {"backbones": tiny.backbones, "encoder": encoder}
    shared = {"device": "cpu", **folders}
    run_stage(
        "diffusion_loss", tiny.params["diffusion_loss"], seed=3, shards=tiny.shards, latents=tiny.latents,
        scores=scores / "diffusion_loss", **shared,
    )  # fmt: skip
    for name in tiny.params["benchmarks"]:
        run_stage(
            "evaluate", tiny.params["evaluate"], benchmark=name, checkpoints="", benchmarks=tiny.benchmarks,
            scores=scores / name, **shared,
        )  # fmt: skip


def measure(tiny: Tiny, folder: Path) -> dict[str, Any]:
    """The content of golden.json, made on this machine."""
    losses = {}
    for method in METHODS:
        losses[method] = [row["loss"] for row in train(tiny, method, folder / method)]
    score(tiny, folder / SCORED, folder / "scores")
    made = [path for method in METHODS for path in (folder / method).rglob("*.safetensors")]
    written = [*made, *(folder / "scores").rglob("*.json")]
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in written}
    return {"machine": machine(), "losses": losses, "sha256": dict(sorted(hashes.items()))}


def recorded() -> dict[str, Any]:
    """The content of golden.json, as it was written."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


if __name__ == "__main__":
    torch.set_num_threads(1)  # as `make test` has it
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(measure(make_tiny(Path(folder) / "tiny"), Path(folder)), indent=1) + "\n")
    print(f"{FILE}: losses of {STEPS} steps a phase of {len(METHODS)} methods, and hashes")
