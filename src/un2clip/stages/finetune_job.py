"""A fine-tuning in numbers and names: the section of params.yaml, and one call of the stage."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.config import at_least, lookup
from un2clip.datasets.caption_bank import Words
from un2clip.datasets.faults import FaultConfig
from un2clip.datasets.shards import read_index
from un2clip.decoders.kinds import Scratch
from un2clip.decoders.perceptual import PerceptualConfig
from un2clip.errors import UserError
from un2clip.methods.conditions import ConditionConfig
from un2clip.methods.contrast import ContrastConfig
from un2clip.methods.table import Method, get_method
from un2clip.training.config import DECIDING, ComputeConfig, PhaseConfig
from un2clip.training.starting import state_folder


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """The section `finetune` of params.yaml.

    Attributes:
        batch_size: images of one optimiser step, of all processes together.
        statistics_images: how many images `align` measures the normaliser on.
        shards_ahead: of a bucket, how many are copied before they are needed; 0 for none.
        corrupt_share: of the images read, how many may be unreadable; more stop the training.
        captions: different captions in the bank of the caption-KL anchor, at most.
        words: what makes the bank of the cosine anchor.
        anchors: lambda of each anchor, for the methods that have it.
        conditions: what a condition is made with, for the methods that have it.
        contrast: numbers of the methods that contrast.
        perceptual: weights of what a decoder of pixels is held to beside the pixels.
        faults: of normalisation, which DIVA's code has.
        scratch: shapes of the decoders that begin from scratch.
        phases: what is learned in each phase; a method names its own.
        compute: how it is computed.
    """

    batch_size: int
    statistics_images: int
    shards_ahead: int
    corrupt_share: float
    captions: int
    words: Words
    anchors: dict[str, float]
    conditions: ConditionConfig
    contrast: ContrastConfig
    perceptual: PerceptualConfig
    faults: FaultConfig
    scratch: Scratch
    phases: dict[str, PhaseConfig]
    compute: ComputeConfig

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "statistics_images")
        at_least(self, 2, "captions")
        at_least(self, 0, "shards_ahead")
        if not 0.0 <= self.corrupt_share < 1.0:
            raise ValueError(f"corrupt_share must be at least 0 and below 1, got {self.corrupt_share}")
        for name, weight in self.anchors.items():
            if weight < 0:
                raise ValueError(f"anchors.{name} must be at least 0, got {weight}")
        if self.batch_size % max(1, self.compute.processes):
            raise ValueError(
                f"batch_size must be a multiple of compute.processes ({self.compute.processes}), got {self.batch_size}"
            )

    def phases_of(self, row: Method) -> list[PhaseConfig]:
        """The numbers of a method's phases, in their order."""
        return [lookup(self.phases, phase.numbers, "phase of finetune.phases") for phase in row.phases]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the stage, as it is handed to each process."""

    params: Finetune
    method: str
    seed: int
    device: str
    checkpoints: str
    shards: Path
    backbones: Path
    latents: Path
    encoder: Path

    @property
    def row(self) -> Method:
        return get_method(self.method)

    @property
    def compute(self) -> ComputeConfig:
        return self.params.compute

    @property
    def written(self) -> list[Path]:
        return [self.encoder, Path(self.checkpoints)]

    def check_read(self, corrupt: int, read: int) -> None:
        """Stop a training that hardly sees its images: `ingest` kept only what can be read, so the rest is damage.

        The share is one of the whole split at least, for the first batch may meet the only broken image there is.

        Raises:
            UserError: more than `corrupt_share` could not be read.
        """
        share = self.params.corrupt_share
        if corrupt > share * read and corrupt > share * read_index(self.shards).count("train"):
            raise UserError(
                f"{corrupt} of the {read} images read so far are unreadable, more than finetune.corrupt_share "
                f"({share:g}) allows; run `un2clip ingest` again, or look at the disk"
            )

    def state_folder(self, parents: dict[str, str]) -> Path | None:
        """Where the state of this very training is kept."""
        params = dataclasses.asdict(self.params)
        compute = {name: params["compute"][name] for name in DECIDING}
        phases = {phase.numbers: params["phases"][phase.numbers] for phase in self.row.phases}
        # all that is not how it is computed, nor how much damage it bears: a new number decides until it is named here
        aside = ("phases", "compute", "corrupt_share", "shards_ahead")
        numbers = {name: value for name, value in params.items() if name not in aside}
        decides: dict[str, Any] = {"method": self.method, "seed": self.seed, "parents": parents, "phases": phases}
        return state_folder(self.checkpoints, decides | numbers | compute)
