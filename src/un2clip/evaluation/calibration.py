"""The records of calibrations: whether a released model reached its published counts on some data."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from un2clip.errors import UserError
from un2clip.evaluation.readers import data_sha256


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The record of one calibration.

    Attributes:
        model: name of the released model.
        right, published: type -> pairs it had right, here and in print.
        passed: whether they agree in every type, and each type has the published number of pairs.
    """

    model: str
    data_sha256: str
    encoder_sha256: str
    right: dict[str, int]
    published: dict[str, int]
    passed: bool

    def save(self, data: Path) -> Path:
        """Write the record beside the data, as DATA.calibration.MODEL.json, and return where."""
        path = data.with_name(f"{data.name}.calibration.{self.model}.json")
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path


def is_calibrated(data: Path) -> bool:
    """Whether a released model has reached its published counts on this very data."""
    records = [_read(path) for path in sorted(data.parent.glob(f"{data.name}.calibration.*.json"))]
    passed = [record for record in records if record.get("passed") is True]
    return bool(passed) and data_sha256(data) in [record.get("data_sha256") for record in passed]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a calibration record ({error}); run `un2clip calibrate` again") from None
    return content if isinstance(content, dict) else {}
