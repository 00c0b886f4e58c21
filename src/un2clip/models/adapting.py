"""State dicts as people have them, under the names of open_clip's classes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from torch import Tensor, nn

from un2clip.errors import UserError
from un2clip.models.state_dicts import State, clip_state, siglip_state

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers beside the weights of OpenAI's own files
_HUGGING_FACE = "vision_model.embeddings.patch_embedding.weight"  # a name of its CLIP and of its SigLIP
_POOL = "vision_model.head.attention.in_proj_"  # SigLIP's, which timm keeps in two


def fit_to(model: CLIP | CustomTextCLIP, state: State, model_cfg: Mapping[str, Any], file: Path) -> State:
    """Names as this class has them; the conversions are open_clip's own, and for Hugging Face's those of the export."""
    state = unwrapped_names(state, model)
    if _HUGGING_FACE in state:
        return _from_hugging_face(model, state, file)
    if [key for key in OPENAI_SIZES if state.pop(key, None) is not None] and not model_cfg.get("quick_gelu"):
        raise UserError(f"{file} is OpenAI's own file, trained with QuickGELU; take the -quickgelu architecture")
    state = convert_state_dict(model, state)
    if isinstance(model, CustomTextCLIP):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if key in state and state[key].numel() == 1 and getattr(model, key, None) is not None:
            state[key] = state[key].reshape(getattr(model, key).shape)
    return _without_mask(model, state)


def unwrapped_names(state: State, model: nn.Module) -> State:
    """The names without what torch.compile, DistributedDataParallel, Lightning and trainers put before them.

    A first part that all names share goes, again and again, unless the model's own names share one.
    """
    state = {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): value for key, value in state.items()}
    own = {key.partition(".")[0] for key in model.state_dict()}
    while len(first := {key.partition(".")[0] for key in state}) == 1 and not first & own:
        if not all("." in key for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict whose names and shapes match one by one.

    Raises:
        UserError: names the first few that do not; or a weight is of integers, as of a quantised checkpoint, which
            without their scales are other numbers.
    """
    own = model.state_dict()
    kind = type(model).__name__
    if not own.keys() & state.keys():
        found = ", ".join(list(state)[:3]) or "nothing"
        raise UserError(f"{name} holds no {kind}: none of its {len(state)} names fits; it holds {found}, ...")
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} has no place" for key in state if key not in own]
    for key in (key for key in own if key in state):
        if own[key].shape != state[key].shape:
            wrong.append(f"{key} is {list(state[key].shape)} and must be {list(own[key].shape)}")
        elif own[key].is_floating_point() and not state[key].is_floating_point():
            wrong.append(f"{key} is of {str(state[key].dtype).removeprefix('torch.')}, not of floating point")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{name} does not fit {kind}: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(dict(state))


def _from_hugging_face(model: CLIP | CustomTextCLIP, state: State, file: Path) -> State:
    """CLIPModel's and SiglipModel's tensors in the places where the export's tables take them from."""
    own = {key: torch.empty_like(value, device="cpu") for key, value in model.state_dict().items()}
    found = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    try:
        places = clip_state(own) if isinstance(model, CLIP) else siglip_state(own)
    except KeyError as missing:
        raise UserError(
            f"{file} is Hugging Face's, and this architecture has no {missing}; take the right one"
        ) from None
    if wrong := sorted(places.keys() ^ found.keys()):
        what = "is missing" if wrong[0] in places else "has no place"
        raise UserError(f"{file} does not fit {type(model).__name__}: {wrong[0]} {what}, and {len(wrong) - 1} more")
    for key, place in places.items():
        if place.shape != found[key].shape:
            sizes = f"{list(found[key].shape)} and must be {list(place.shape)}"
            raise UserError(f"{file} does not fit {type(model).__name__}: {key} is {sizes}")
        if not found[key].is_floating_point():
            raise UserError(f"{file}: {key} is of {found[key].dtype}, not of floating point; take the unquantised file")
        place.copy_(found[key])
    if not isinstance(model, CLIP):
        for kind in ("weight", "bias"):  # the table joins these, so that its place is a copy
            width = found[f"{_POOL}{kind}"].shape[0] // 3
            own[f"visual.trunk.attn_pool.q.{kind}"].copy_(found[f"{_POOL}{kind}"][:width])
            own[f"visual.trunk.attn_pool.kv.{kind}"].copy_(found[f"{_POOL}{kind}"][width:])
    return own


def _without_mask(model: CLIP | CustomTextCLIP, state: State) -> State:
    """Older files keep the causal mask among the weights; the one that the model has anyway may go."""
    for key, owner in (("attn_mask", model), ("text.attn_mask", getattr(model, "text", None))):
        mask = getattr(owner, "attn_mask", None)
        if key in state and isinstance(mask, Tensor) and mask.device.type != "meta" and torch.equal(mask, state[key]):
            del state[key]
    return state
