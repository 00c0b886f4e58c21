"""The toy pipeline's stages with their names, for tries that break them one by one."""

from pathlib import Path
from typing import Any

from tests.conftest import WORLD, make_tiny
from un2clip.config import read_params
from un2clip.stages import run_stage

ROOT = Path(__file__).parents[2]
#: Whose outputs the other stages of the tries read.
STAGES = (
    "shapes", "ingest", "backbones", "latents", "finetune", "diffusion_loss", "evaluate", "reconstruct", "compare",
    "promote",
)  # fmt: skip


def numbers() -> dict[str, Any]:
    return read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])


def names(stage: str, base: Path, out: Path, method: str = "un2clip-anchored") -> dict[str, Any]:
    """The arguments of a stage that reads what `make` made in `base`, and writes below `out`."""
    seed, device = {"seed": 1}, {"device": "cpu"}
    made = {"shards": base / "shards", "backbones": base / "backbones", "latents": base / "latents"}
    pair = {"backbones": base / "backbones", "encoder": base / "encoder"}
    report = {"scores": base / "scores", "encoder": base / "encoder"}
    checkpoints = {"checkpoints": str(out / "checkpoints")}
    given: dict[str, dict[str, Any]] = {
        "shapes": seed | {name: out / name for name in WORLD},
        "ingest": {"images": base / "images", "shards": out / "shards"},
        "backbones": seed | device | {"images": base / "images", "backbones": out / "backbones"},
        "latents": device | made | {"latents": out / "latents"},
        "finetune": seed | device | made | checkpoints | {"method": method, "encoder": out / "encoder"},
        "diffusion_loss": seed | device | made | pair | {"scores": out / "diffusion_loss"},
        "evaluate": device
        | pair
        | checkpoints
        | {"benchmark": "segmentation", "benchmarks": base / "benchmarks", "scores": out / "segmentation"},
        "reconstruct": seed | device | pair | {"shards": base / "shards", "reconstructions": out / "reconstructions"},
        "compare": seed | report | {"reconstructions": base / "reconstructions", "report": out / "report"},
        "promote": seed | report | {"report": base / "report", "decision": out / "decision"},
    }
    return given[stage]


def make(base: Path) -> Path:
    """The whole toy pipeline, without MLflow: a quarter of a minute."""
    params = numbers()
    make_tiny(base)
    for stage in ("finetune", "diffusion_loss", "evaluate", "reconstruct"):
        run_stage(stage, params[stage], **names(stage, base, base))
    for benchmark in ("mmvp_vlm", "zeroshot"):
        folder = base / "scores" / benchmark
        run_stage(
            "evaluate", params["evaluate"], **names("evaluate", base, base) | {"benchmark": benchmark, "scores": folder}
        )
    for name in ("diffusion_loss", "segmentation"):
        (base / name).rename(base / "scores" / name)
    for stage in ("compare", "promote"):
        run_stage(stage, params[stage], **names(stage, base, base) | sections(stage, params))
    return base


def sections(stage: str, params: dict[str, Any]) -> dict[str, Any]:
    """The other sections of the numbers that a stage takes."""
    return {"compare": params["compare"]} if stage == "promote" else {}
