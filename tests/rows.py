"""A row of the method table at toy size: its parts, and a short training of them on noise."""

import dataclasses
import functools
import itertools
from typing import Any

import torch

from un2clip.config import build, merge
from un2clip.decoders.decoder import NoiseConfig
from un2clip.decoders.kinds import open_decoder
from un2clip.methods.anchors import embed_bank
from un2clip.methods.building import new_objective
from un2clip.methods.table import METHODS
from un2clip.models.clip import load_clip
from un2clip.stages.finetune_job import Finetune
from un2clip.training.loop import fit

CAPTIONS = ["a circle", "a red circle", "two blue moons", "an arrow on grey"]
NOISE = NoiseConfig(
    timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 0), condition_dropout=0.0, time_scale=1.0
)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def batches(shape: tuple[int, ...] = (4, 8, 8), start: int = 0, n: int = 8):
    """Endless batches of noise, from step `start` on."""
    rng = torch.Generator().manual_seed(0)
    for step in itertools.count():
        target, pixel_values = torch.randn(n, *shape, generator=rng), torch.randn(n, 3, 32, 32, generator=rng)
        if step >= start:
            keys = [f"sample{i}" for i in range(n)]
            seen = {"pixel_values": pixel_values, "view": pixel_values.flip(3)}
            yield {"keys": keys, **seen, "target": target, "valid": torch.ones(n) > 0}


def prepare(tiny, method: str, *, anchors: dict[str, float] | None = None, **compute: object):
    """A row's CLIP, objective and numbers; the seed is 0 everywhere."""
    section = merge(tiny.params["finetune"], {"compute": compute, "anchors": anchors or {}})
    params, row, clip = build(Finetune, section, "finetune"), METHODS[method], load_clip(tiny.backbones / "clip")
    decoder = open_decoder(
        row.decoder, tiny.backbones, scratch=params.scratch, image_px=32, seed=0, device=torch.device("cpu")
    )
    banks = {name: embed_bank(clip, CAPTIONS) for name in row.banks}
    refers = params.compute.refer_every > 0
    numbers = {"conditions": params.conditions, "contrast": params.contrast}
    objective = new_objective(row, clip, decoder, params.anchors, banks=banks, seed=0, refers=refers, **numbers)
    return clip, objective, params


def run(tiny, method: str, feed=batches, anchors: dict[str, float] | None = None, compute: Any = None, **changes: Any):
    """Train a row's phases for three steps each; return the CLIP, the objective and the history."""
    clip, objective, params = prepare(tiny, method, anchors=anchors, **(compute or {"refer_every": 1}))
    history: list[dict[str, float]] = []
    rng = torch.Generator().manual_seed(0)
    for named in METHODS[method].phases:
        phase = dataclasses.replace(params.phases[named.numbers], **({"steps": 3} | changes))
        step, fed = len(history), functools.partial(feed, objective.decoder.target_shape)
        fit(objective, named.trains, phase, params.compute, fed, rng, history, done=step)
    return clip, objective, history


FAST = {"lr": {"encoder": 1e-3, "condition": 1e-3, "decoder": 1e-3}}
