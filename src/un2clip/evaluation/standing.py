"""Where an encoder stands among the models of clip-benchmark's table, on data and by a protocol that are calibrated."""

from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from un2clip.config import read_yaml
from un2clip.evaluation.calibration import calibrated
from un2clip.evidence.report import Comparison, number
from un2clip.evidence.scores import Scores

#: Beside a benchmark's scores: the sentence, where there is one.
STANDING = "standing.txt"


def standings(comparisons: Iterable[Comparison], data: Path) -> Iterator[str]:
    """A sentence for each benchmark that has a place in the table.

    Without a calibration the place would say how data were read, and not how good the encoder is: so there must be a
    record, of a released model that came near its own published number, on these very data by this very protocol.

    Args:
        comparisons: of a report.
        data: folder with one folder of data a benchmark, beside which `un2clip calibrate` keeps its records.
    """
    for each in comparisons:
        if calibrated(data / each.benchmark, each.data_sha256, each.protocol):
            yield from _standing(each.benchmark, each.unit, each.whole.reference, each.whole.tuned)


def save_standing(reference: Scores, tuned: Scores, data: Path, folder: Path) -> None:
    """Write the sentence of two scores of one benchmark beside them, for the report; nothing where there is none.

    Args:
        data: the benchmark's own folder.
        folder: of the scores.
    """
    (folder / STANDING).unlink(missing_ok=True)
    if calibrated(data, tuned.data_sha256, tuned.protocol):
        for sentence in _standing(tuned.benchmark, tuned.unit, reference.score, tuned.score):
            (folder / STANDING).write_text(sentence + "\n", encoding="utf-8")


def _standing(benchmark: str, unit: str, reference: float, tuned: float) -> Iterator[str]:
    models: dict[str, float] = read_yaml(files("un2clip.evaluation") / "clip_benchmark.yaml")["standing"].get(
        benchmark, {}
    )
    if models:
        before, now = (1 + sum(other > score for other in models.values()) for score in (reference, tuned))
        best = max(models, key=lambda name: models[name])
        yield (
            f"{benchmark}: with {number(tuned, unit)} {unit} it is number {now} of "
            f"{len(models) + 1} beside clip-benchmark's {len(models)} models, and was number {before} "
            f"(first there: {best}, {models[best]:.2f})."
        )
