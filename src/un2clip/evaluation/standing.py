"""Where an encoder stands among the models of clip-benchmark's table, on data and by a protocol that are calibrated."""

from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from un2clip.config import read_yaml
from un2clip.evaluation.calibration import calibrated
from un2clip.evidence.report import Comparison, number


def standings(comparisons: Iterable[Comparison], data: Path) -> Iterator[str]:
    """A sentence for each benchmark that has a place in the table.

    Without a calibration the place would say how data were read, and not how good the encoder is: so there must be a
    record, of a released model that came near its own published number, on these very data by this very protocol.

    Args:
        comparisons: of a report.
        data: folder with one folder of data a benchmark, beside which `un2clip calibrate` keeps its records.
    """
    table = read_yaml(files("un2clip.evaluation") / "clip_benchmark.yaml")["standing"]
    for each in comparisons:
        models: dict[str, float] = table.get(each.benchmark, {})
        if not models or not calibrated(data / each.benchmark, each.data_sha256, each.protocol):
            continue
        before, now = (
            1 + sum(other > score for other in models.values()) for score in (each.whole.reference, each.whole.tuned)
        )
        best = max(models, key=lambda name: models[name])
        yield (
            f"{each.benchmark}: with {number(each.whole.tuned, each.unit)} {each.unit} it is number {now} of "
            f"{len(models) + 1} beside clip-benchmark's {len(models)} models, and was number {before} "
            f"(first there: {best}, {models[best]:.2f})."
        )
