"""What is known about one tuned encoder: its lineage, and its scores beside the reference's."""

import json
from pathlib import Path
from typing import Any

from un2clip.errors import UserError
from un2clip.evidence.scores import ROLES, Role, Scores, collect_scores, mismatch

#: What `promote` writes: the decision, and what happened at the registry.
DECISION, REGISTRY = "decision.json", "registry.json"
LINEAGE = ("method", "seed", "params", "parents", "encoder_sha256", "text_sha256")


def read_json(path: Path, keys: tuple[str, ...], made_by: str) -> dict[str, Any]:
    """Read a JSON mapping that must have `keys`.

    Raises:
        UserError: it is absent or broken; the message names the stage that makes it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        missing = [key for key in keys if key not in content]
    except (OSError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read {path} ({reason}); run `un2clip {made_by}` first") from None
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; run `un2clip {made_by}` again")
    return content


def read_lineage(encoder: Path) -> dict[str, Any]:
    """Read the lineage of a tuned checkpoint: method, seed, params, parents and hashes."""
    path = encoder / "lineage.json"
    lineage = read_json(path, LINEAGE, "finetune")
    if not isinstance(lineage["parents"], dict) or "clip" not in lineage["parents"]:
        raise UserError(f"{path} does not say which CLIP was tuned (parents.clip); run `un2clip finetune` again")
    return lineage


def encoder_pair(backbones: Path, encoder: Path) -> list[tuple[Role, str, Path]]:
    """Role, method and checkpoint folder of the two encoders that every score compares.

    A folder without a lineage was not made by `finetune`: its method is "imported". It can be scored, not promoted.
    """
    method = read_lineage(encoder)["method"] if (encoder / "lineage.json").is_file() else "imported"
    return [("reference", "reference", backbones / "clip"), ("tuned", method, encoder)]


def tuned_pairs(folders: list[Path], lineage: dict[str, Any]) -> list[tuple[Scores, Scores]]:
    """(reference, tuned) of each benchmark: a comparable pair, of this encoder and of the CLIP it was tuned from.

    Args:
        folders: with the scores files of both.
        lineage: of the tuned encoder, as `read_lineage` gives it.

    Raises:
        UserError: it is not so; the message names the benchmark.
    """
    pairs = []
    for benchmark, found in collect_scores(folders).items():
        if missing := [role for role in ROLES if role not in found]:
            raise UserError(f"{benchmark} has no scores of the {missing[0]} encoder; run its evaluation again")
        reference, tuned = found["reference"], found["tuned"]
        of_lineage = (
            (tuned, lineage["encoder_sha256"], "this one"),
            (reference, lineage["parents"]["clip"], "its parent"),
        )
        for scores, wanted, who in of_lineage:
            if scores.encoder_sha256 != wanted:
                raise UserError(
                    f"{benchmark} ({scores.role}) was scored with encoder {scores.encoder_sha256[:12]}, but {who} is "
                    f"{str(wanted)[:12]}; run its evaluation again"
                )
        if reason := mismatch(reference, tuned):
            raise UserError(f"{benchmark}: reference and tuned cannot be compared: {reason}")
        pairs.append((reference, tuned))
    return pairs
