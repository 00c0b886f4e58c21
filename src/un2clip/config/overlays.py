"""Overlays: nested numbers laid over others, of which they change keys and add none."""

from collections.abc import Iterable, Mapping
from typing import Any

from un2clip.errors import UserError

#: Mappings that are one value, because their keys are names of files: an overlay replaces them.
WHOLE = ("sha256",)


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay an overlay over the parameters. An overlay may change a key and never add one, except in a WHOLE mapping."""
    merged = dict(base)
    for key, value in overlay.items():
        if key not in base:
            raise UserError(f"unknown parameter {prefix}{key}; known here: {', '.join(sorted(map(str, base)))}")
        if isinstance(value, Mapping) and isinstance(base[key], Mapping) and key not in WHOLE:
            merged[key] = merge(base[key], value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


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
