"""One tuned encoder in the forms in which others load it: open_clip's folder, OpenAI's file, Hugging Face's folder."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP

from un2clip.errors import UserError
from un2clip.models.clip import Clip, clip_files, load_clip

Form = Literal["open_clip", "openai", "hf"]
OPENAI_FILE = "openai_clip.pt"
HEAD_WIDTH = 64  # of every head in OpenAI's build_model, which has no other


def write_export(folder: Path, to: Path, form: Form) -> str:
    """Write a CLIP folder into `to`, a new or empty folder, and return how it is loaded.

    Raises:
        UserError: `to` is in use, or the form has no place for this model.
    """
    check_free(to)
    clip = load_clip(folder)
    if form == "openai":
        _check_openai(clip)
    to.mkdir(parents=True, exist_ok=True)
    if form == "open_clip":
        for name in clip_files(folder):
            shutil.copyfile(folder / name, to / name)
        return f"open_clip.create_model_and_transforms('local-dir:{to}')"
    if form == "openai":
        torch.save(clip.model.state_dict(), to / OPENAI_FILE)  # clip.load reads torch files only
        return f"clip.load('{to / OPENAI_FILE}')"
    from un2clip.models.huggingface import save_hugging_face

    save_hugging_face(clip, to)
    return f"transformers.AutoModel.from_pretrained('{to}')"


def check_free(to: Path) -> None:
    """Raise a UserError where something could be overwritten."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={to} is in use and nothing is overwritten; name a new or empty folder")


def _check_openai(clip: Clip) -> None:
    """OpenAI's loader guesses the model from the shapes; what it cannot guess would load, and embed wrongly.

    It also holds matrices in half precision, as OpenAI's own: an update smaller than that is lost there.
    """
    cfg, preprocess = clip.config["model_cfg"], clip.config["preprocess_cfg"]
    usual = {"mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD), "resize_mode": "shortest"}
    wrong = []
    if not isinstance(clip.model, CLIP) or not hasattr(clip.model.visual, "class_embedding"):
        wrong.append("its towers are not CLIP's ViT and text transformer")
    else:
        towers = {"image": clip.model.visual.transformer, "text": clip.model.transformer}
        for name, tower in towers.items():
            if tower.width != HEAD_WIDTH * tower.resblocks[0].attn.num_heads:
                wrong.append(f"the {name} tower's heads are {tower.width // tower.resblocks[0].attn.num_heads} wide")
        if not cfg.get("quick_gelu"):
            wrong.append("its activation is GELU")
    wrong += [f"its {key} is {preprocess[key]}" for key, value in usual.items() if preprocess.get(key, value) != value]
    if wrong:
        raise UserError(
            f"OpenAI's package only loads ViTs with QuickGELU, heads of {HEAD_WIDTH} and its own preprocessing; "
            f"of this model {', '.join(wrong)}; use --format=open_clip or hf"
        )
