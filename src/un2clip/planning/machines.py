"""The machines that a plan is made for: rates and memory by name, and what is expected of any of them."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from un2clip.config import at_least, build, lookup, read_yaml
from un2clip.devices import Precision

TABLE = Path(str(files(__package__).joinpath("machines.yaml")))


@dataclass(frozen=True, kw_only=True)
class Device:
    """An accelerator: rates in 10^12 operations a second, memory in 10^9 bytes, where both are from."""

    fp32: float
    bf16: float
    memory_gb: float
    source: str

    def rate(self, precision: Precision) -> float:
        """Operations a second; in NVIDIA's tables TF32 is half as fast as bf16."""
        return 1e12 * {"fp32": self.fp32, "tf32": self.bf16 / 2, "bf16": self.bf16}[precision]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is expected of any device and of photographs; machines.yaml has sources and units."""

    share: tuple[float, ...]
    reserved_gb: float
    read_s_per_image: float
    read_s_per_megapixel: float
    jpeg_bytes_per_pixel: float
    aspect: float

    def __post_init__(self) -> None:
        at_least(self, 0, "reserved_gb")
        if len(self.share) != 2 or not 0 < self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"share must be a lowest and a highest share above 0 and up to 1, got {list(self.share)}")


def get_device(name: str) -> Device:
    """The device called `name`, or a UserError that lists the table."""
    return lookup(build(_Table, read_yaml(TABLE), TABLE.name).devices, name, "GPU of machines.yaml")


def read_expected() -> Expected:
    return build(_Table, read_yaml(TABLE), TABLE.name).expected


@dataclass(frozen=True, kw_only=True)
class _Table:
    devices: dict[str, Device]
    expected: Expected
