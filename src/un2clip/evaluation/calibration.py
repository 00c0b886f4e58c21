"""The records of calibrations: how near a released model came to its published counts on some data."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


def save_record(data: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of a `model` beside the data, as DATA.calibration.MODEL.json, and return where."""
    path = data.with_name(f"{data.name}.calibration.{record['model']}.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def grades(data: Path) -> dict[str, Grade]:
    """Model -> grade, of all calibrations on this very data. Records without a grade passed exactly or not at all."""
    records = [record for record in _records(data) if "model" in record]
    if not records:
        return {}
    sha256 = data_sha256(data)
    return {
        str(record["model"]): record.get("grade", "exact" if record.get("passed") is True else "none")
        for record in records
        if record.get("data_sha256") == sha256
    }


def best_grade(data: Path) -> Grade:
    """The best grade that any released model has reached on this very data."""
    found = grades(data).values()
    return "exact" if "exact" in found else "close" if "close" in found else "none"


def _records(data: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(data.parent.glob(f"{data.name}.calibration.*.json")):
        try:
            content = read_json(path)
        except UserError as error:
            raise UserError(f"{path} is not a calibration record ({error}); run `un2clip calibrate` again") from None
        if isinstance(content, dict):
            yield content
