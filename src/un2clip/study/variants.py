"""Variants of a row: with one other number, or a control that nothing has trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from un2clip.config import merge
from un2clip.evidence.lineage import LINEAGE, read_lineage
from un2clip.files.texts import parse_json
from un2clip.methods.table import get_method
from un2clip.models.clip import encoder_sha256, load_clip, save_clip

#: The variant of a row whose weights are changed by as much as its own training changed them, in a random direction.
RANDOM = "random"


def check_variant(variant: str) -> None:
    """Raise a ValueError unless it is ROW@random or ROW@KEY=VALUE; a UserError where there is no such row."""
    row, at, word = variant.partition("@")
    get_method(row)
    if not at or (word != RANDOM and not all(word.partition("="))):
        raise ValueError(f"a variant is ROW@KEY=VALUE, KEY as below finetune, or ROW@{RANDOM}, got {variant!r}")


def varied(params: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """All numbers with the one of ROW@KEY=VALUE, whose KEY is dotted and below `finetune`, and whose VALUE is JSON."""
    name, _, text = variant.partition("@")[2].partition("=")
    overlay: Any = parse_json(text, variant)
    for key in reversed(["finetune", *name.split(".")]):
        overlay = {key: overlay}
    return merge(params, overlay)


def perturb(tuned: Path, backbones: Path, *, seed: int, encoder: Path) -> None:
    """Write the reference, changed at random: each tensor by a normal direction as long as the training's change.

    Args:
        tuned: the row's own checkpoint, of which only the length of each tensor's change is used.
        backbones: its clip/ is the reference.
        encoder: folder that gets the checkpoint and its lineage.
    """
    clip, trained = load_clip(backbones / "clip"), load_clip(tuned)
    rng, after = torch.Generator().manual_seed(seed), dict(trained.model.visual.named_parameters())
    with torch.no_grad():
        for name, value in clip.model.visual.named_parameters():
            direction = torch.randn(value.shape, generator=rng)
            value += direction * ((after[name] - value).norm() / direction.norm())
    save_clip(clip, encoder)
    lineage = read_lineage(tuned)
    lineage |= {"method": f"{lineage['method']}@{RANDOM}", "encoder_sha256": encoder_sha256(encoder)}
    (encoder / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n")
