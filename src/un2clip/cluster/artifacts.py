"""What Kubeflow shows of an artifact beside its place: counts, hashes and scores, read from the artifact itself.

Equal artifacts give equal descriptions (no clock, no place), for they are part of a cache key.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from un2clip.config import convert, read_record
from un2clip.datasets.latents import read_cache
from un2clip.datasets.shards import digest, read_index
from un2clip.evidence.languages import ASKED, AssistantLineage
from un2clip.evidence.lineage import LINEAGE, read_lineage
from un2clip.evidence.report import data_uri
from un2clip.evidence.scores import ROLES, Scores, load_scores
from un2clip.evidence.summary import read_decision
from un2clip.files.texts import read_json, read_text
from un2clip.models.clip import encoder_sha256

Description = dict[str, Any]


def describe(name: str, folder: str) -> Description:
    """The metadata of an artifact.

    Args:
        name: shards, backbones, latents, encoder, assistant, scores, report or decision.
        folder: where it lies.
    """
    return DESCRIPTIONS[name](Path(folder))


def scores_of(folder: str) -> dict[str, float]:
    """The score of each scores file, by benchmark and role, for Kubeflow's table of metrics."""
    return {f"{scores.benchmark} {scores.role}": scores.score for scores in _all_scores(Path(folder))}


def pictures(folder: str) -> str:
    """A page of HTML with every PNG of a folder in it."""
    images = "\n".join(
        f'<img src="{data_uri(path.read_bytes(), "png")}" alt="{path.stem}" style="max-width: 100%">'
        for path in sorted(Path(folder).glob("*.png"))
    )
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>un2clip</title>\n{images}\n</html>\n'


def _shards(folder: Path) -> Description:
    index = read_index(folder)
    return {
        "samples": {split: index.count(split) for split in index.splits},
        "read": index.read,
        "rejected": index.rejected,
        "sha256": digest(folder),
    }


def _backbones(folder: Path) -> Description:
    return {"clip_sha256": encoder_sha256(folder / "clip")}


def _latents(folder: Path) -> Description:
    cache = read_cache(folder)
    precision = {"precision": cache.precision} | ({} if cache.error is None else {"error": cache.error})
    return {"cached": cache.cached, "vae_sha256": cache.vae_sha256, "files": len(cache.shards)} | precision


def _encoder(folder: Path) -> Description:
    lineage = read_lineage(folder)
    kept = ("method", "seed", "steps_done", "complete", "encoder_sha256", "text_sha256", "parents")
    return {key: lineage[key] for key in kept}


def _scores(folder: Path) -> Description:
    kept = ("unit", "n", "data_sha256", "encoder_sha256", "score")
    own = [load_scores(path) for path in sorted(folder.glob("*.json"))]  # beside which others of the benchmark may lie
    described: Description = {}
    for scores in own or _all_scores(folder):
        of_role = {scores.role: {key: getattr(scores, key) for key in kept}}
        described[scores.benchmark] = described.get(scores.benchmark, {}) | of_role
    return {"benchmark": own[0].benchmark} | described[own[0].benchmark] if own else described


def _all_scores(folder: Path) -> list[Scores]:
    names = (*(f"{role}.json" for role in ROLES), ASKED)
    return [load_scores(path) for path in sorted(folder.rglob("*.json")) if path.name in names]


def _assistant(folder: Path) -> Description:
    lineage = read_record(AssistantLineage, folder / LINEAGE, "assistant")
    return {key: value for key, value in dataclasses.asdict(lineage).items() if key != "params"}


def _report(folder: Path) -> Description:
    path = folder / "metrics.json"
    content: Description = convert(dict[str, dict[str, float]], read_json(path), str(path))
    return content


def _decision(folder: Path) -> Description:
    decided, done = read_decision(folder)
    return {"passed": decided.passed, "outcome": done.outcome, "version": done.version or ""}


DESCRIPTIONS: dict[str, Callable[[Path], Description]] = {
    "shards": _shards,
    "backbones": _backbones,
    "latents": _latents,
    "encoder": _encoder,
    "assistant": _assistant,
    "scores": _scores,
    "report": _report,
    "decision": _decision,
}

#: What Kubeflow's UI shows of an output as a page.
PAGES: dict[str, Callable[[str], str]] = {
    "report": lambda folder: read_text(Path(folder, "index.html")),
    "reconstructions": pictures,
}
