"""Weights that come with this package, by name: the same from a checkout, a wheel, an image and a pod."""

from importlib.resources import files

#: Pairs of a CLIP and the unCLIP that inverts it; each has a folder in pairs/, whose README says what it is.
PACKAGED = ("laptop-pair",)


def located(weights: str, part: str) -> str:
    """Where `weights` of the parameters lie: the `part` (clip or unclip) of a packaged pair, or as they are named."""
    return str(files("un2clip.sources").joinpath("pairs", weights, part)) if weights in PACKAGED else weights
