"""What is known about one tuned encoder: its lineage, and its scores beside the reference's."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.config import read_record
from un2clip.errors import UserError
from un2clip.evidence.scores import ROLES, Role, Scores, collect_scores, mismatch
from un2clip.files.texts import read_json

#: What `promote` writes: the decision, and what happened at the registry.
DECISION, REGISTRY = "decision.json", "registry.json"
LINEAGE, HISTORY = "lineage.json", "history.json"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """lineage.json of a tuned checkpoint.

    Attributes:
        method: row of the method table.
        params: the section `finetune` that it trained with.
        steps_done, corrupt: steps, and images that could not be read.
        complete: false where the training failed, and the weights are the last good ones.
        parents: clip, generator, shards, ... -> hash.
        encoder_sha256, text_sha256: of the weights, and of those of the text tower, which no method touches.
    """

    method: str
    seed: int
    params: dict[str, Any]
    steps_done: int
    corrupt: int
    complete: bool
    parents: dict[str, str]
    encoder_sha256: str
    text_sha256: str

    def __post_init__(self) -> None:
        if "clip" not in self.parents:
            raise ValueError("parents does not say which CLIP was tuned (parents.clip)")


def read_lineage(encoder: Path) -> dict[str, Any]:
    """The lineage of a tuned checkpoint, as plain data.

    Raises:
        UserError: it is absent or broken.
    """
    return dataclasses.asdict(read_record(Lineage, encoder / LINEAGE, "finetune"))


def read_history(path: Path) -> list[dict[str, float]]:
    """The curves of a training, a list of {"step": number, name: number, ...}.

    Raises:
        UserError: the file is broken.
    """
    content = read_json(path, nan=True)
    if not isinstance(content, list) or not all(map(_is_record, content)):
        raise UserError(f"{path} is no list of records with a step and numbers; run `un2clip finetune` again")
    return content


def _is_record(row: object) -> bool:
    return isinstance(row, dict) and "step" in row and all(type(value) in (int, float) for value in row.values())


def encoder_pair(backbones: Path, encoder: Path) -> list[tuple[Role, str, Path]]:
    """Role, method and checkpoint folder of the two encoders that every score compares."""
    return [("reference", "reference", backbones / "clip"), ("tuned", method_of(encoder), encoder)]


def method_of(encoder: Path) -> str:
    """The method that made an encoder; "imported" where no lineage says so: it can be scored, and not promoted."""
    return str(read_lineage(encoder)["method"]) if (encoder / LINEAGE).is_file() else "imported"


def tuned_pairs(folders: list[Path], lineage: dict[str, Any], *, needed: bool = True) -> list[tuple[Scores, Scores]]:
    """(reference, tuned) of each benchmark: a comparable pair, of this encoder and of the CLIP it was tuned from.

    Args:
        folders: with the scores files of both.
        lineage: of the tuned encoder, as `read_lineage` gives it.
        needed: whether there must be one.

    Raises:
        UserError: it is not so; the message names the benchmark.
    """
    pairs = []
    for benchmark, found in collect_scores(folders, needed=needed).items():
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
