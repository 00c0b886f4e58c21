"""One tuned encoder in the forms in which others load it: open_clip's folder, OpenAI's file, Hugging Face's folder.

Each is written into a corner of the folder, loaded by the library it is for, and compared with the original on random
pixels and texts; only then is it there.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from un2clip.errors import UserError
from un2clip.models.clip import Clip, clip_files, is_textless, load_clip
from un2clip.models.plain import activation_of, clip_obstacles, eps_of, plain_state, text_of
from un2clip.models.state_dicts import State

Form = Literal["open_clip", "openai", "hf", "internvl"]
OPENAI_FILE = "openai_clip.pt"
HEAD_WIDTH = 64  # of every head in OpenAI's build_model, which has no other
#: How far an embedding may be from the original's, in lengths of it; the libraries' kernels differ by about 1e-6.
APART = 1e-4
_PARTIAL = ".export.partial"
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a library made of an export: functions of pixel_values (B, 3, H, W) and token ids (B, L) to (B, D)."""

    images: Encode
    texts: Encode


def write_export(folder: Path, to: Path, form: Form) -> str:
    """Write a CLIP folder into `to`, a new or empty folder, and return how it is loaded.

    Raises:
        UserError: `to` is in use, the form has no place for this model, or what its library loads is another model;
            nothing is written then.
    """
    check_free(to)
    clip = load_clip(folder)
    if is_textless(clip.config) != (form == "internvl"):
        raise UserError(
            "an encoder of InternVL's is exported by --format=internvl, and no other encoder is: "
            f"{folder} is {'one' if is_textless(clip.config) else 'none'}"
        )
    with _arriving(to) as corner:
        if form == "internvl":
            from un2clip.models.internvl import save_internvl

            save_internvl(clip, corner)
            return f"transformers.InternVLModel.from_pretrained({str(to)!r})"
        if form == "open_clip":
            for name in clip_files(folder):
                shutil.copyfile(folder / name, corner / name)
            check_same(clip, _of_clip(load_clip(corner)), "open_clip")
            return f"open_clip.create_model_and_transforms({f'local-dir:{to}'!r})"
        if form == "openai":
            _check_openai(clip)
            state = plain_state(clip)
            torch.save(state, corner / OPENAI_FILE)  # clip.load reads torch files only
            check_same(clip, _load(partial(_load_openai, state), corner, "OpenAI's package"), "OpenAI's package")
            return f"clip.load({str(to / OPENAI_FILE)!r})"
        from un2clip.models.huggingface import save_hugging_face

        save_hugging_face(clip, corner)
        check_same(clip, _load(load_hugging_face, corner, "transformers"), "transformers")
        return f"transformers.AutoModel.from_pretrained({str(to)!r})"


def check_free(to: Path) -> None:
    """Raise a UserError where something could be overwritten."""
    if to.exists() and (not to.is_dir() or any(path.name != _PARTIAL for path in to.iterdir())):
        raise UserError(f"--to={to} is in use and nothing is overwritten; name a new or empty folder")


@torch.no_grad()
def check_same(clip: Clip, loaded: Loaded, library: str) -> None:
    """Compare embeddings of random pixels and token ids.

    Raises:
        UserError: one is more than APART from the original's.
    """
    rng = torch.Generator().manual_seed(0)
    pixel_values, ids = torch.randn(2, 3, *clip.image_size, generator=rng), _random_ids(clip, rng)
    for what, given, ours, theirs in (
        ("image", pixel_values, clip.model.encode_image, loaded.images),
        ("text", ids, clip.model.encode_text, loaded.texts),
    ):
        wanted = ours(given.to(clip.device)).cpu()
        try:
            found = theirs(given)
        except Exception as error:  # whatever a library raises on a model that it did not understand
            raise UserError(f"{library} loads this model and cannot embed: {type(error).__name__}: {error}") from None
        apart = float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) if found.shape == wanted.shape else 2.0
        if not apart <= APART:
            raise UserError(
                f"{library} makes another model of this one: its {what} embeddings are {apart:.1e} of their length "
                f"apart, and at most {APART:.0e} is rounding; use --format=open_clip"
            )


def load_hugging_face(folder: Path) -> Loaded:
    """A folder of Hugging Face's, by AutoModel."""
    from transformers import AutoModel

    return of_hugging_face(AutoModel.from_pretrained(folder).eval())


def of_hugging_face(model: Any) -> Loaded:
    """A CLIPModel or SiglipModel."""
    return Loaded(
        images=lambda given: model.get_image_features(pixel_values=given).pooler_output,
        texts=lambda given: model.get_text_features(input_ids=given).pooler_output,
    )


def _load_openai(state: State, folder: Path) -> Loaded:
    """By open_clip's copy of OpenAI's build_model; afterwards without the rounding to half precision that it does."""
    model = open_clip.load_openai_model(str(folder / OPENAI_FILE), device="cpu", precision="fp32")
    model.load_state_dict(state)
    return Loaded(images=model.encode_image, texts=model.encode_text)


def _of_clip(clip: Clip) -> Loaded:
    return Loaded(images=clip.model.encode_image, texts=clip.model.encode_text)


def _load(read: Callable[[Path], Loaded], folder: Path, library: str) -> Loaded:
    try:
        return read(folder)
    except Exception as error:  # each library has its own ways to miss a shape
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{library} cannot load this model ({what}); use --format=open_clip") from None


def _random_ids(clip: Clip, rng: torch.Generator) -> Tensor:
    """Token ids as tokenizers give them: a text's words, its end, padding; of SigLIP whatever fills the context."""
    text = text_of(clip.model)
    length, vocabulary = clip.model.context_length, text.vocabulary if text else clip.model.vocab_size
    end = (
        text.eos
        if text and text.pool == "eos"
        else min(getattr(clip.tokenize, "eot_token_id", vocabulary), vocabulary - 1)
    )
    ids = torch.randint(1, vocabulary, (4, length), generator=rng)
    if text and text.pool in ("argmax", "eos"):
        ids = torch.randint(1, max(2, end), (4, length), generator=rng)
        for row, stop in zip(ids, (length - 1, length // 2, 1, length // 3), strict=True):
            row[stop:] = 0
            row[stop] = end
    return ids


def _check_openai(clip: Clip) -> None:
    """OpenAI's loader guesses the model from the shapes; what it cannot guess would load, and embed wrongly.

    It also holds matrices in half precision, as OpenAI's own: an update smaller than that is lost there.
    """
    wrong = clip_obstacles(clip)
    if not wrong:
        wrong += _not_guessed(clip)
    cfg: Any = clip.model.visual.preprocess_cfg
    usual = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "resize_mode": "shortest"}
    usual |= {"interpolation": "bicubic"}
    wrong += [f"its {key} is {cfg[key]}" for key, value in usual.items() if _listed(cfg[key]) != _listed(value)]
    if wrong:
        raise UserError(
            f"OpenAI's package only loads ViTs with QuickGELU, heads of {HEAD_WIDTH} and its own preprocessing; "
            f"of this model {', '.join(wrong)}; use --format=open_clip or hf"
        )


def _not_guessed(clip: Clip) -> list[str]:
    visual, text = clip.model.visual, text_of(clip.model)
    assert text is not None
    wrong = []
    towers: Any = (("image", visual.transformer, visual), ("text", text.transformer, text.ln_final))
    for name, tower, norms in towers:
        block = tower.resblocks[0]
        if (width := block.attn.head_dim) != HEAD_WIDTH:
            wrong.append(f"the {name} tower's heads are {width} wide")
        if block.mlp.c_fc.out_features != 4 * block.attn.embed_dim:
            wrong.append(f"the {name} tower's MLPs are not 4 times its width")
        if activation_of(tower) != "quick_gelu":
            wrong.append(f"its activation is {'GELU' if activation_of(tower) else 'none of OpenAI'}")
        if eps_of(tower, norms) != 1e-5:
            wrong.append(f"the {name} tower's norms have another epsilon than 1e-5")
    if text.pool != "argmax":
        wrong.append(f"its texts end with token {text.eos}")
    return list(dict.fromkeys(wrong))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


@contextmanager
def _arriving(to: Path) -> Iterator[Path]:
    """A folder within `to` whose files go up into it at the end; after an error `to` is as it was."""
    made = not to.exists()
    corner = to / _PARTIAL
    shutil.rmtree(corner, ignore_errors=True)  # of an export that was killed
    corner.mkdir(parents=True)
    try:
        yield corner
        for path in sorted(corner.iterdir()):
            path.rename(to / path.name)
        corner.rmdir()
    except BaseException:
        shutil.rmtree(to if made else corner)
        raise
