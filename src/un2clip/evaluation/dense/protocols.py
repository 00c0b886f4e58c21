"""Protocols: everybody's settings, read from protocols.yaml."""

from dataclasses import dataclass
from importlib.resources import files

from un2clip.config import at_least, build, lookup, read_yaml
from un2clip.errors import UserError
from un2clip.evaluation.dense.windows import Edge


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one data set is measured; protocols.yaml says what each number means."""

    short_side_px: int
    crop_px: int
    stride_px: int
    logit_scale: float
    threshold: float
    area_threshold: float

    def __post_init__(self) -> None:
        at_least(self, 1, "short_side_px")
        at_least(self, 0, "crop_px", "stride_px")
        if bool(self.crop_px) != bool(self.stride_px):
            raise ValueError(f"crop_px and stride_px must both be 0 (the whole image), or neither, got {self.crop_px}")
        if self.stride_px > self.crop_px:
            raise ValueError(f"stride_px must be at most crop_px, or pixels are never seen, got {self.stride_px}")

    def __str__(self) -> str:
        size = f"{self.short_side_px}/{self.crop_px}/{self.stride_px} px"
        if not self.crop_px:
            size = f"{self.short_side_px} px, whole image"
        return f"{size}, scale {self.logit_scale:g}, thresholds {self.threshold:g}, {self.area_threshold:g}"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One paper's settings.

    Attributes:
        long_side_px: a picture whose long side would exceed this is made smaller.
        edge: what is done with a window's side that the patch does not divide: zeros are added, or pixels left out.
        pamr_steps: of PAMR, after the similarities have the picture's own size.
        own_names: whether the authors have class lists of their own, which the package does not have.
        sets: settings by data set; `own` for folders that describe themselves.
    """

    long_side_px: int
    edge: Edge
    pamr_steps: int
    own_names: bool
    sets: dict[str, Settings]

    def __post_init__(self) -> None:
        at_least(self, 0, "pamr_steps")

    def __str__(self) -> str:
        done = {"pad": "edges padded", "floor": "edges floored"}[self.edge]
        return f"{done}, PAMR of {self.pamr_steps} steps" if self.pamr_steps else done


def load_protocols() -> dict[str, Protocol]:
    """All protocols of the package, read strictly."""
    content = read_yaml(files("un2clip.evaluation.dense") / "protocols.yaml")
    return {name: build(Protocol, values, name) for name, values in content.items()}


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`, or a UserError that lists them."""
    return lookup(load_protocols(), name, "segmentation protocol")


def get_settings(name: str, data_set: str) -> Settings:
    """A protocol's settings of one data set.

    Raises:
        UserError: there is no such protocol, or it has none for this data set.
    """
    sets = get_protocol(name).sets
    if data_set not in sets:
        raise UserError(f"protocol {name} has no settings for {data_set}; it has them for {', '.join(sets)}")
    return sets[data_set]
