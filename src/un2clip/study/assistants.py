"""Can this world tell encoders apart by what language models answer? Controls, whose outcome is known beforehand.

Each control's assistants are trained and asked as the reference's, and the table says how they differ. Blind: every
picture gives the same tokens, so what is left is the prior of the questions. Random: the reference's image tower with
weights as it began. Both must score lower. Labels: trained on with labels of all that is asked (labelled.py); it must
score higher. Where one does not, beyond the spread over the language models, the questions, or the training, cannot
tell such encoders apart: of a comparison that shows no difference it is not known then whether there was one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Ask
from un2clip.evidence.languages import OverSeeds, collect_asked, over_seeds
from un2clip.evidence.scores import Role
from un2clip.files.outputs import replaced
from un2clip.models.clip import Clip, load_clip, save_clip
from un2clip.stages import run_stage
from un2clip.stages.ask import ask_assistant, check_questions
from un2clip.stages.compare import Compare
from un2clip.study.labelled import with_labels
from un2clip.world.asking import ASKED

REFERENCE = "reference"


@torch.no_grad()
def blind(clip: Clip, params: Mapping[str, Any]) -> None:
    """No pixel gets in: the patches' weights are 0, as is what they would say of a picture."""
    clip.model.visual.conv1.weight.zero_()


@torch.no_grad()
def at_random(clip: Clip, params: Mapping[str, Any]) -> None:
    """Every tensor's values are drawn anew, with the mean and the deviation that they have."""
    rng = torch.Generator().manual_seed(0)
    for value in clip.model.visual.parameters():
        deviation = value.std() if value.numel() > 1 else torch.zeros(())
        value.copy_(value.mean() + deviation * torch.randn(value.shape, generator=rng))


@dataclass(frozen=True, kw_only=True)
class Control:
    """What makes the encoder of the reference's, in place, by the numbers; and how its assistants must compare."""

    change: Callable[[Clip, Mapping[str, Any]], None]
    expected: Literal["better", "worse"]


CONTROLS: Mapping[str, Control] = {
    "blind": Control(change=blind, expected="worse"),
    "random": Control(change=at_random, expected="worse"),
    "labels": Control(change=with_labels, expected="better"),
}


def check_asks(params: Mapping[str, Any]) -> None:
    """Raise a UserError unless the world has questions, to learn from and to be asked."""
    if not params["shapes"]["questions"]["pictures"] or not params["shapes"]["questions"]["of_each"]:
        raise UserError("shapes.questions makes no questions; lay configs/laptop-assistants.yaml over the numbers")


def controls(params: Mapping[str, Any], *, to: Path, seeds: Sequence[int]) -> dict[str, list[OverSeeds]]:
    """Control -> its difference to the reference on each benchmark, over the seeds of the language models.

    Args:
        params: the numbers; `shapes.questions` says how much is trained on and asked.
        to: folder of all that is made; what is finished there is not made again.
        seeds: of the language models.

    Raises:
        UserError: the world has no questions, or as the stages.
    """
    check_asks(params)
    world = {name: to / "world" / name for name in ("images", "instructions", "benchmarks")}
    if not (world["benchmarks"] / list(ASKED)[-1]).is_dir():
        run_stage("shapes", params["shapes"], seed=params["seed"], **world)
    if not (to / "backbones").is_dir():
        with replaced(to / "backbones") as partial:
            run_stage(
                "backbones", params["backbones"], seed=params["seed"], device=params["device"], images=world["images"],
                backbones=partial,
            )  # fmt: skip
    for name, control in CONTROLS.items():
        if not (to / "encoders" / name).is_dir():
            clip = load_clip(to / "backbones/clip")
            control.change(clip, params)
            with replaced(to / "encoders" / name) as partial:
                save_clip(clip, partial)
    for name in (REFERENCE, *CONTROLS):
        for seed in seeds:
            _answers(params, to, name, seed)
    compare = build(Compare, params["compare"], "compare")
    return {
        name: [
            over_seeds(pairs, confidence=compare.confidence, resamples=compare.resamples, seed=params["seed"])
            for pairs in collect_asked([to / "scores" / REFERENCE, to / "scores" / name]).values()
        ]
        for name in CONTROLS
    }


def verdict(name: str, found: Sequence[OverSeeds]) -> str:
    """One sentence: on which benchmarks a control came out as it must, and what the others cannot tell."""
    expected = CONTROLS[name].expected
    seen = [each.benchmark for each in found if each.reading == expected]
    missing = [each.benchmark for each in found if each.reading != expected]
    text = f"{name} must be {expected}, and is, beyond the spread, on {', '.join(seen) or 'none'}"
    return text + (f"; this world, so trained, cannot tell it by {', '.join(missing)}" if missing else "")


def _answers(params: Mapping[str, Any], to: Path, name: str, seed: int) -> None:
    """Train one assistant and ask it, where that is not done."""
    role: Role = "reference" if name == REFERENCE else "tuned"
    folder, scores = to / "assistants" / name / str(seed), to / "scores" / name / str(seed)
    of_both = {"device": params["device"], "checkpoints": str(to / "checkpoints")}
    encoder = to / "backbones" if name == REFERENCE else to / "encoders" / name
    if not folder.is_dir():
        run_stage(
            "assistant", params["assistant"], language_seed=seed, instructions=to / "world/instructions",
            encoder=encoder, assistant=folder, **of_both,
        )  # fmt: skip
    if missing := [each for each in ASKED if not (scores / each / role / "asked.json").is_file()]:
        benchmarks = to / "world/benchmarks"
        ask_assistant(
            build(Ask, params["ask"], "ask"), role=role, method=name, assistant=folder, benchmarks=benchmarks,
            data=check_questions(missing, benchmarks), scores=scores, **of_both,
        )  # fmt: skip
