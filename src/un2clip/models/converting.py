"""The CLIP to be tuned, read from whatever it was published as, and written as the folder that open_clip loads.

A CLIP comes from an open_clip folder, or one of Hugging Face's CLIP; or from an architecture of open_clip's with a
state dict, its own, OpenAI's or Hugging Face's. A state dict of the visual tower alone, as un²CLIP's authors released
theirs, is laid over it. Names and shapes must match one by one, and the preprocessing is the model's own.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP

from un2clip.config import lookup
from un2clip.errors import UserError
from un2clip.files.texts import read_json
from un2clip.hashes import is_hidden
from un2clip.models.adapting import fit_to, load_strictly, unwrapped_names
from un2clip.models.clip import (
    CONFIG,
    INTERNVL,
    TOKENIZER,
    WEIGHTS,
    Clip,
    load_clip,
    save_model,
    text_sha256,
)
from un2clip.models.configuring import HF_CONFIG, hugging_face_config, is_hugging_face
from un2clip.models.registry import obtain_model
from un2clip.models.sizes import check_config, check_finite
from un2clip.sources.hub import TORCH_FILES, Source, read_tensors
from un2clip.sources.packaged import located

#: In the order in which open_clip itself prefers them.
WEIGHTS_NAMES = (
    WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
    "pytorch_model.bin",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """`backbones.encoder` of params.yaml.

    Attributes:
        weights: laptop-pair | toy | a local file or folder | a hub id | models:/name/version.
        architecture: "" for what the folder's own configuration says, else `NAME:TAG` of open_clip's list;
            the tag decides the preprocessing.
        revision: commit of a hub id.
        sha256: file -> hash; for a hub id the files that are fetched.
        visual: "" or a file with the visual tower alone, laid over `weights`; its hash goes by its own name.
    """

    weights: str
    architecture: str
    revision: str
    sha256: dict[str, str]
    visual: str

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights must be laptop-pair, toy, a file, folder, hub id or models:/name/version, got ''")
        if self.weights == "toy" and (self.architecture or self.visual):
            raise ValueError("weights must not be toy where an architecture or a visual tower is given")
        _ = self.source, self.visual_source  # their own checks

    @property
    def source(self) -> Source:
        hashes = {path: digest for path, digest in self.sha256.items() if path != Path(self.visual).name}
        return Source(location=located(self.weights, "clip"), revision=self.revision, sha256=hashes)

    @property
    def visual_source(self) -> Source:
        hashes = {path: digest for path, digest in self.sha256.items() if path == Path(self.visual).name}
        return Source(location=self.visual, revision="", sha256=hashes)


def convert_checkpoint(encoder: Encoder, folder: Path, name: str = "backbones.encoder") -> Clip:
    """Write `folder` (open_clip_model.safetensors in fp32, open_clip_config.json, tokenizer) and load it.

    Args:
        name: of the parameters, for messages.

    Raises:
        UserError: a source is not what it should be, or a state dict and the model do not match.
    """
    place = obtain_model(encoder.source, name=name)
    if internvl := _internvl_of(encoder.architecture, place):
        return _convert_internvl(internvl, place, folder, name)
    weights = place if place.is_file() else _weights_in(place, name)
    config = architecture_config(encoder.architecture) if encoder.architecture else _config_of(place, name)
    check_config(config["model_cfg"], name)
    _check_activation(encoder, config["model_cfg"], name)
    model = new_model(config["model_cfg"])
    load_strictly(model, fit_to(model, read_tensors(weights), config["model_cfg"], weights), str(weights))
    check_finite(model, str(weights))
    text = text_sha256(model)
    if encoder.visual:
        visual = obtain_model(encoder.visual_source, name=f"{name}.visual")
        tower = unwrapped_names(read_tensors(visual), model.visual)
        load_strictly(model.visual, tower, f"{visual} (visual tower)")
        check_finite(model.visual, str(visual))
    assert text_sha256(model) == text
    made = not folder.exists()
    try:
        save_model(model, config, folder)
        if config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
            _copy_tokenizer(place, folder, name)
        return load_clip(folder)
    except BaseException:  # what does not load is not left to be taken for an encoder
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _internvl_of(architecture: str, place: Path) -> dict[str, Any]:
    """The configuration of an InternVL, its folder's own or by name; {} where this is none."""
    named: dict[str, Any] = {}
    if architecture.startswith("InternVL"):
        from un2clip.models.internvl import KNOWN, internvl_config

        lookup(KNOWN, architecture, "architecture of InternVL")
        named = internvl_config(architecture)
    if (named or not architecture) and place.is_dir() and is_hugging_face(place) and not (place / CONFIG).is_file():
        content = read_json(place / HF_CONFIG)
        if isinstance(content, dict) and content.get("model_type") == INTERNVL:
            return content  # which says the language model's sizes too
    return named


def _convert_internvl(internvl: dict[str, Any], place: Path, folder: Path, name: str) -> Clip:
    """Write image tower and connector of an InternVL, in the two files of a CLIP folder."""
    from un2clip.models.internvl import clip_config, internvl_state, new_textless

    config, state = clip_config(internvl), internvl_state(place, name)
    model = new_textless(config)
    load_strictly(model, state, str(place))
    check_finite(model, str(place))
    save_model(model, config, folder)
    return load_clip(folder)


def _copy_tokenizer(place: Path, folder: Path, name: str) -> None:
    found = [file for file in TOKENIZER if place.is_dir() and (place / file).is_file()]
    if not found:
        raise UserError(
            f"{name}: this model needs its tokenizer's files beside the weights ({', '.join(TOKENIZER[:2])})"
        )
    for file in found:
        shutil.copyfile(place / file, folder / file)


def architecture_config(architecture: str) -> dict[str, Any]:
    """The content of open_clip_config.json for `NAME:TAG` of open_clip's list.

    The tag is that of the weights: it says how their images are prepared, and whether they were trained
    with QuickGELU, which a configuration of the same shape may not have.
    """
    model, _, tag = architecture.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        known = ", ".join(f"{model}:{each}" for each in tags) or "see open_clip.list_pretrained(as_str=True)"
        raise UserError(f"architecture must be NAME:TAG of open_clip's list, got {architecture!r}; known: {known}")
    model_cfg, pretrained = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if pretrained.get("quick_gelu", False) != model_cfg.get("quick_gelu", False):
        named = f"{model}-quickgelu" if pretrained.get("quick_gelu") else model.removesuffix("-quickgelu")
        raise UserError(f"the weights {tag} were trained with another activation than {model} has; take {named}:{tag}")
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess_cfg = {key: pretrained[key] for key in keys if key in pretrained}
    return {"model_cfg": model_cfg, "preprocess_cfg": json.loads(json.dumps(preprocess_cfg))}


def new_model(model_cfg: Mapping[str, Any]) -> CLIP | CustomTextCLIP:
    """open_clip's class for this configuration, untrained, on the default device (`meta` allocates nothing).

    Raises:
        UserError: there is none; open_clip's own word for it follows.
    """
    arguments = json.loads(json.dumps(dict(model_cfg)))
    custom = arguments.pop("custom_text", False)
    if "timm_model_name" in arguments["vision_cfg"]:
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    try:
        return (CustomTextCLIP if custom else CLIP)(**arguments)
    except Exception as error:  # sizes that are no numbers, keys that there are not, a timm model that there is not
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"open_clip has no model of this configuration ({what})") from None


def _weights_in(folder: Path, name: str) -> Path:
    kinds = (".safetensors", *TORCH_FILES)
    found = [path for path in sorted(folder.iterdir()) if path.suffix in kinds and not is_hidden(path.name)]
    preferred = [folder / each for each in WEIGHTS_NAMES if folder / each in found]
    if not preferred and len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{name}: {folder} must hold {WEIGHTS}, or one file of weights; it has: {listed}")
    return (preferred or found)[0]


def _config_of(folder: Path, name: str) -> dict[str, Any]:
    if folder.is_file():
        raise UserError(
            f"{name}: {folder} is a lone file of weights; say its architecture, as ViT-H-14:laion2b_s32b_b79k"
        )
    if not (folder / CONFIG).is_file():
        if is_hugging_face(folder):
            return hugging_face_config(folder, name)
        listed = ", ".join(sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))[:6]) or "nothing"
        raise UserError(f"{name}: {folder} has no {CONFIG}, and no config.json of Hugging Face's; it has {listed}")
    try:
        config = read_json(folder / CONFIG)
        return {"model_cfg": config["model_cfg"], "preprocess_cfg": config["preprocess_cfg"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: cannot use {folder / CONFIG}: {type(error).__name__} {error}") from None


def _check_activation(encoder: Encoder, model_cfg: Mapping[str, Any], name: str) -> None:
    """A published folder whose configuration forgot QuickGELU would load, and embed wrongly."""
    if model_cfg.get("quick_gelu"):
        return
    for model, tag in open_clip.list_pretrained():
        published = open_clip.get_pretrained_cfg(model, tag)
        if published.get("quick_gelu") and (published.get("hf_hub") or "").strip("/") == encoder.weights:
            raise UserError(
                f"{name}: {encoder.weights} was trained with QuickGELU and its configuration does not say so; "
                f"set architecture to {model.removesuffix('-quickgelu')}-quickgelu:{tag}"
            )
