"""An assistant's training in numbers and names: the section of params.yaml, and one call of the stage."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from un2clip.assistants.language import Language, ToySize
from un2clip.assistants.pictures import Way
from un2clip.config import at_least, lookup
from un2clip.errors import UserError
from un2clip.evidence.lineage import method_of
from un2clip.training.config import DECIDING, ComputeConfig, PhaseConfig
from un2clip.training.starting import state_folder

#: The phases in their order, and what trains in each.
PHASES = {"alignment": ("projector",), "instruction": ("projector", "language")}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How a picture comes in, in each phase."""

    alignment: Way
    instruction: Way


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Conversations of one optimiser step in each phase, of all processes together."""

    alignment: int
    instruction: int

    def __post_init__(self) -> None:
        at_least(self, 1, *PHASES)


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """The section `assistant` of params.yaml.

    Attributes:
        language: the language model.
        toy: shape of the language model that begins from scratch; world.yaml has it.
        layer: of the encoder, whose patch tokens are read.
        system: sentence before every conversation; "" for none.
        max_tokens: of a conversation, the picture's among them; the rest is cut off.
        pictures: how they come in.
        batch_size: conversations of one optimiser step, of all processes together.
        cache: whether the features of all pictures are computed once, and held in memory.
        corrupt_share: of the conversations read, how many may be unreadable; more stop the training.
        dtype: of the weights that are saved.
        phases: what is learned in each phase.
        compute: how it is computed.
    """

    language: Language
    toy: ToySize
    layer: int
    system: str
    max_tokens: int
    pictures: Pictures
    batch_size: BatchSizes
    cache: bool
    corrupt_share: float
    dtype: Literal["float32", "float16", "bfloat16"]
    phases: dict[str, PhaseConfig]
    compute: ComputeConfig

    def __post_init__(self) -> None:
        at_least(self, 1, "max_tokens")
        for phase in PHASES:
            lookup(self.phases, phase, "phase of assistant.phases")
            size = getattr(self.batch_size, phase)
            if size % max(1, self.compute.processes):
                raise ValueError(
                    f"batch_size.{phase} must be a multiple of compute.processes ({self.compute.processes}), got {size}"
                )
        if not 0.0 <= self.corrupt_share < 1.0:
            raise ValueError(f"corrupt_share must be at least 0 and below 1, got {self.corrupt_share}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the stage, as it is handed to each process."""

    params: Assistant
    seed: int
    device: str
    checkpoints: str
    instructions: Path
    encoder: Path
    assistant: Path

    @property
    def compute(self) -> ComputeConfig:
        return self.params.compute

    @property
    def written(self) -> list[Path]:
        return [self.assistant, Path(self.checkpoints)]

    @property
    def folder(self) -> Path:
        """The encoder's own folder."""
        return untouched if (untouched := self.encoder / "clip").is_dir() else self.encoder

    @property
    def method(self) -> str:
        """What made the encoder, as scores say it: a row of the method table, reference, or imported."""
        return "reference" if self.folder != self.encoder else method_of(self.encoder)

    def check_read(self, corrupt: int, read: int) -> None:
        """Stop a training of which too many conversations are left out; the first batch may meet the only one.

        Raises:
            UserError: more than `corrupt_share` could not be read.
        """
        share = self.params.corrupt_share
        if corrupt > max(1.0, share * read):
            raise UserError(
                f"{corrupt} of the {read} conversations read so far are left out, more than assistant.corrupt_share "
                f"({share:g}) allows; look at their pictures, or raise assistant.max_tokens"
            )

    def state_folder(self, parents: dict[str, str]) -> Path | None:
        """Where the state of this very training is kept."""
        params = dataclasses.asdict(self.params)
        compute = params.pop("compute")
        params["compute"] = {name: compute[name] for name in DECIDING}
        decides = {"assistant": params, "method": self.method, "seed": self.seed, "parents": parents}
        return state_folder(self.checkpoints, decides)
