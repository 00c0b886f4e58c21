"""The records of calibrations: how near a released model came to its published counts on some data."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from un2clip.config import record
from un2clip.errors import UserError
from un2clip.evaluation.readers import data_sha256
from un2clip.files.texts import read_json

#: From best to worst: the same count in every type; a few pairs apart in all; neither.
Grade = Literal["exact", "close", "none"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The record of one calibration.

    Attributes:
        model: name of the released model.
        right: type -> pairs it had right here.
        published: the same in print, of the nearest run that scored what is scored here; `run` says whose that is.
        apart: source of each published run -> in how many pairs its counts and these differ, over all types.
        passed: whether the grade is exact or close.
    """

    model: str
    data_sha256: str
    encoder_sha256: str
    right: dict[str, int]
    published: dict[str, int]
    run: str
    apart: dict[str, int]
    grade: Grade
    passed: bool

    def save(self, data: Path) -> Path:
        """Write the record beside the data, as DATA.calibration.MODEL.json, and return where."""
        return save_record(data, dataclasses.asdict(self))


def save_record(data: Path, content: Mapping[str, Any]) -> Path:
    """Write the record of a `model` beside the data, as DATA.calibration.MODEL.json, and return where."""
    path = data.with_name(f"{data.name}.calibration.{content['model']}.json")
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def grades(data: Path) -> dict[str, Grade]:
    """Model -> grade, of all calibrations on this very data. Records without a grade passed exactly or not at all."""
    records = list(_records(data))
    sha256 = data_sha256(data) if records else ""
    return {
        each.model: each.grade or ("exact" if each.passed else "none") for each in records if each.data_sha256 == sha256
    }


def best_grade(data: Path) -> Grade:
    """The best grade that any released model has reached on this very data."""
    found = grades(data).values()
    return "exact" if "exact" in found else "close" if "close" in found else "none"


def calibrated(data: Path, sha256: str, protocol: str) -> bool:
    """Whether a released model came near its number on data of this hash, by this protocol; the data are not read."""
    return any(
        each.data_sha256 == sha256 and each.protocol == protocol and each.grade in ("exact", "close")
        for each in _records(data)
    )


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is read again of a record, of pairs (`apart`) or of a benchmark; the oldest ones have no grade."""

    model: str
    data_sha256: str
    grade: Grade | None = None
    passed: bool = False
    apart: dict[str, int] | None = None
    benchmark: str | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        if self.grade is None and (self.apart is not None or self.benchmark is not None):
            raise ValueError("grade is missing")


def _records(data: Path) -> Iterator[_Record]:
    for path in sorted(data.parent.glob(f"{data.name}.calibration.*.json")):
        try:
            yield record(_Record, read_json(path), path.name)
        except UserError as error:
            raise UserError(f"{path} is not a calibration record ({error}); run `un2clip calibrate` again") from None
