"""Pictures of one colour with questions about it, in LLaVA's format, and encoders that differ where nothing is read."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from un2clip.models.clip import load_clip, save_clip
from un2clip.sources.packaged import located

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "grey": (128, 128, 128)}
#: The encoder of the laptop's pair, of three blocks.
CLIP = Path(located("laptop-pair", "clip"))


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def talk(number: int, colour: str) -> dict[str, Any]:
    """Two turns about a picture; of every fourth one three, and of every fifth none of it has a picture."""
    turns = [human(f"<image>\nWhat is the colour of {number}?"), gpt(colour), human("Is it red?")]
    turns += [gpt("Yes" if colour == "red" else "No")]
    if number % 4 == 0:
        turns += [human("Say it again, please."), gpt(f"It is {colour} indeed")]
    if number % 5 == 0:
        return {"id": f"t{number}", "conversations": [human("Say hello."), gpt("Hello")]}
    return {"id": f"t{number}", "image": f"{colour}/{number}.png", "conversations": turns}


def write_instructions(folder: Path, n: int = 24) -> Path:
    """alignment.json, instruction.json and images/."""
    talks, captions = [], []
    for number in range(n):
        colour = list(COLOURS)[number % len(COLOURS)]
        path = folder / "images" / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), COLOURS[colour]).save(path)
        talks.append(talk(number, colour))
        about = {"id": f"c{number}", "image": f"{colour}/{number}.png"}
        captions.append(about | {"conversations": [human("<image>\nDescribe it."), gpt(f"a {colour} picture")]})
    (folder / "alignment.json").write_text(json.dumps(captions))
    (folder / "instruction.json").write_text(json.dumps(talks))
    return folder


@torch.no_grad()
def write_encoder(folder: Path, *, changed: str) -> Path:
    """The encoder, with noise on the weights whose names begin with `changed` ("" for all, of several "|")."""
    clip, rng = load_clip(CLIP), torch.Generator().manual_seed(0)
    for name, value in clip.model.visual.named_parameters():
        if name.startswith(tuple(changed.split("|"))):
            value += 0.1 * torch.randn(value.shape, generator=rng)
    save_clip(clip, folder)
    return folder
