"""Overlays: nested numbers laid over others, of which they change keys and add none."""

from collections.abc import Iterable, Mapping
from typing import Any

from un2clip.errors import UserError

#: Mappings that are one value, because their keys are names of files or parts: an overlay replaces them.
WHOLE = ("sha256", "lora")
#: In an entry of a mapping of dataclasses: the name of another entry, from which it takes all that it does not hold.
LIKE = "like"
_TUNE, _NOISE = "finetune.phases.tune", "finetune.phases.tune.noise"
#: Parameters that had another name -> their name now, both in full. The old one is refused with the new one.
RENAMED: dict[str, str] = {
    **{
        f"finetune.training.{name}": f"{_TUNE}.{name}"
        for name in ("steps", "weight_decay", "warmup_steps", "decay", "clip_grad_norm", "ema_decay")
    },
    **{
        f"finetune.training.{name}": f"{_NOISE}.{name}"
        for name in ("timesteps", "timesteps_drawn", "noise_level", "condition_dropout")
    },
    "finetune.training.encoder_lr": f"{_TUNE}.lr.encoder",
    "finetune.training.decoder_lr": f"{_TUNE}.lr.decoder",
    "finetune.training.anchor_weight": "finetune.anchors.embedding",
    "finetune.training.caption_weight": "finetune.anchors.captions",
    "finetune.longer": "finetune.phases.longer.steps",
    **{
        f"finetune.running.{name}": f"finetune.compute.{name}"
        for name in (
            "processes", "workers", "max_per_device", "precision", "frozen", "gradient_checkpointing", "channels_last",
            "compile", "checkpoint_every", "keep_checkpoints",
        )
    },
    **{f"backbones.clip.{name}": f"backbones.phases.clip.{name}" for name in ("steps", "weight_decay", "warmup_steps")},
    "backbones.clip.lr": "backbones.phases.clip.lr.clip",
    "backbones.vae.steps": "backbones.phases.vae.steps",
    "backbones.vae.lr": "backbones.phases.clip.lr.vae",
    **{
        f"backbones.unet.training.{name}": f"backbones.phases.unet.{name}"
        for name in ("steps", "weight_decay", "warmup_steps", "decay", "clip_grad_norm", "ema_decay")
    },
    "backbones.unet.training.decoder_lr": "backbones.phases.clip.lr.decoder",
}  # fmt: skip


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay an overlay over the parameters.

    An overlay may change a key and never add one, except in a WHOLE mapping, and to an entry that is `like` another
    one, whose keys it may add.

    Raises:
        UserError: names a key that is unknown, or that has another name now.
    """
    merged = dict(base)
    for key, value in overlay.items():
        if key not in base:
            raise UserError(unknown(f"{prefix}{key}", sorted(map(str, base)), value))
        if not isinstance(value, Mapping) or not isinstance(base[key], Mapping) or key in WHOLE:
            merged[key] = value
        elif LIKE in base[key]:
            merged[key] = stack([base[key], value])
        else:
            merged[key] = merge(base[key], value, f"{prefix}{key}.")
    for key in overlay:
        complete(merged, key, prefix)  # refuses what an entry adds and the one that it is like does not have
    return merged


def complete(entries: Mapping[str, Any], name: str, prefix: str = "", before: tuple[str, ...] = ()) -> Any:
    """An entry of a mapping; one that is `like` another is laid over that one, which may be like a third.

    Raises:
        UserError: it is like an entry that there is not, like itself by some way, or has a key that the other has not.
    """
    entry = entries[name]
    if not isinstance(entry, Mapping) or LIKE not in entry:
        return entry
    other, path = entry[LIKE], (*before, name)
    if not isinstance(other, str) or other not in entries:
        others = ", ".join(str(each) for each in entries if each != name)
        raise UserError(f"{prefix}{name}.{LIKE} must be one of {others}, got {other!r}")
    if other in path:
        raise UserError(f"{prefix}{name}.{LIKE} closes a circle: {' -> '.join(map(str, (*path, other)))}")
    under = complete(entries, other, prefix, path)
    if not isinstance(under, Mapping):
        raise UserError(f"{prefix}{other} must be a mapping, got {under!r}")
    return merge(under, {key: value for key, value in entry.items() if key != LIKE}, f"{prefix}{name}.")


def unknown(name: str, known: Iterable[str], value: Any = None) -> str:
    """What to say of a parameter that there is not: how it is called now, or which there are.

    Args:
        name: in full.
        known: the names in its place.
        value: what it holds, perhaps a section whose keys have other names now.
    """
    names = [name, *(flatten(value, f"{name}.") if isinstance(value, Mapping) else ())]
    renamed = [f"{each} is {RENAMED[each]} now" for each in names if each in RENAMED]
    return "; ".join(renamed) or f"unknown parameter {name}; known here: {', '.join(known)}"


def stack(overlays: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several overlays as one; the later wins."""
    whole: dict[str, Any] = {}
    for overlay in overlays:
        for key, value in overlay.items():
            deeper = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping) and key not in WHOLE
            whole[key] = stack([whole[key], value]) if deeper else value
    return whole


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and texts: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
