"""The second ruler: clip-benchmark's published numbers of released models, on sets far larger than MMVP-VLM.

Data that are read in another order, classes with other names or a wrong preprocessing move thousands of images, so a
released model's number shows them before a tuned one is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from un2clip.config import lookup, read_yaml
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.evaluation.calibration import Grade, save_record
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.evaluation.readers import data_sha256
from un2clip.evidence.scores import score_of
from un2clip.models.clip import encoder_sha256, load_clip


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """The published numbers of one model on one benchmark, in %.

    Attributes:
        numbers: type of items, "" for all of them -> score.
        exact, close: in points; a number that is no further away has that grade.
    """

    model: str
    benchmark: str
    numbers: Mapping[str, float]
    exact: float
    close: float

    def grade(self, found: Mapping[str, float]) -> Grade:
        """The grade of the number that is furthest away."""
        furthest = max(abs(found[name] - self.numbers[name]) for name in self.numbers)
        return "exact" if furthest <= self.exact + 1e-9 else "close" if furthest <= self.close + 1e-9 else "none"


def get_ruler(model: str, benchmark: str) -> Ruler:
    """What is published of a model on a benchmark, or a UserError that lists the models, or the benchmarks."""
    return lookup(rulers(model), benchmark, "benchmark of clip-benchmark's table")


def rulers(model: str) -> dict[str, Ruler]:
    """Benchmark -> what is published of a model.

    Raises:
        UserError: nothing is known of it; lists the models.
    """
    table: dict[str, Any] = read_yaml(files("un2clip.evaluation") / "clip_benchmark.yaml")
    numbers = iter(lookup(table["models"], model, "model of clip-benchmark's table")["numbers"])
    limits = {"exact": table["exact_points"], "close": table["close_points"]}
    return {
        benchmark: Ruler(model=model, benchmark=benchmark, numbers={name: next(numbers) for name in names}, **limits)
        for benchmark, names in table["columns"].items()
    }


def hold(ruler: Ruler, *, data: Path, clip: Path, device: str, params: Evaluate) -> Grade:
    """Measure a released model, print what it reaches beside what is published, and record it beside the data.

    Args:
        data: the benchmark's folder; the record is DATA.calibration.MODEL.json.
        clip: CLIP folder of the model, untouched.

    Raises:
        UserError: a number is further away than `close`; it is recorded all the same.
    """
    result = get_benchmark(ruler.benchmark, "clip").run(load_clip(clip, pick_device(device)), data, params)
    found = {
        name: score_of([item for item in result.items if name in ("", item.type)], result.unit)
        for name in ruler.numbers
    }
    grade = ruler.grade(found)
    record = {
        "model": ruler.model,
        "benchmark": ruler.benchmark,
        "data_sha256": data_sha256(data),
        "encoder_sha256": encoder_sha256(clip),
        "protocol": result.protocol,
        "found": found,
        "published": dict(ruler.numbers),
        "grade": grade,
    }
    path = save_record(data, record)
    said = "; ".join(
        f"{name or 'score'} {found[name]:.2f} %, published {wanted:.2f}" for name, wanted in ruler.numbers.items()
    )
    if grade == "none":
        raise UserError(
            f"{data} with {ruler.model} is further than {ruler.close} points from clip-benchmark's table: {said}; "
            f"docs/reproduce.md lists what usually differs; recorded in {path}"
        )
    print(f"{ruler.model} on {ruler.benchmark}: {grade}: {said}; recorded in {path}")
    return grade
