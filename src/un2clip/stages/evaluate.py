"""Stage `evaluate`: one benchmark, the reference and the tuned encoder, every item's outcome kept."""

import dataclasses
import functools
import hashlib
import inspect
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from un2clip import __version__
from un2clip.datasets.engine import run_tasks
from un2clip.devices import pick_device
from un2clip.evaluation.autoencoding import open_autoencoder
from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evaluation.measuring import Benchmark, Evaluate, Subject, get_benchmark, measure
from un2clip.evaluation.spreading import Kept, ShareMeasured, Unmeasured, close
from un2clip.evaluation.standing import save_standing
from un2clip.evidence.lineage import encoder_pair
from un2clip.evidence.scores import Role
from un2clip.evidence.units import get_unit
from un2clip.files.outputs import only_one
from un2clip.hashes import folder_sha256
from un2clip.models.clip import encoder_sha256, load_clip


def evaluate(
    params: Evaluate, *, benchmark: str, device: str, benchmarks: Path, backbones: Path, encoder: Path, scores: Path
) -> None:
    """Score both encoders on the benchmark's data, in fp32, and write reference.json and tuned.json.

    A benchmark that has further scores has them in folders beside these, each called as in the report. What batches
    gave lies in a hidden folder beside the scores until all are measured; the same command goes on there.

    Args:
        benchmark: a file of evaluation/benchmarks/ that measures an encoder, or `file-dataset` where one file reads
            several data sets.
        device: auto, cpu or cuda.
        benchmarks: folder with one folder of data a benchmark.
        backbones: its clip/ is the reference.
        encoder: the tuned checkpoint.
        scores: folder of the scores files, of a PNG where the benchmark has pictures to show, and of a sentence where
            the encoder has a place among published ones.
    """
    processes = params.processes or max(1, torch.cuda.device_count() if device != "cpu" else 1)
    chosen, data = _benchmark(benchmark), benchmarks / benchmark
    _subjects.cache_clear()  # others may lie in the same folders by now
    subjects, folder = _subjects(benchmark, device, backbones, encoder), scores.resolve()
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)

    def run(role: Role, data_sha256: str) -> BenchmarkResult:
        kept = work / _made_of(chosen, params, subjects, data_sha256, pick_device(device).type, encoder)
        for other in work.iterdir():
            if other.is_dir() and other != kept:
                shutil.rmtree(other)  # of other data, numbers or encoders
        share = Share(
            params=params, benchmark=benchmark, device=device, data=data, backbones=backbones, encoder=encoder,
            role=role, kept=kept / role, number=0, of=1 if processes == 1 else 0,
        )  # fmt: skip
        while True:
            try:
                return _run(share)
            except Unmeasured as loop:
                shares = [dataclasses.replace(share, number=number, of=processes) for number in range(processes)]
                for _ in run_tasks(measure_share, shares, processes):
                    pass
                close(*loop.args)

    with only_one(work / "lock", f"another `un2clip evaluate` writes {scores}; let it end"):
        results = measure(chosen, subjects, data, params, run)
        for result in results:
            to = scores if result.benchmark == benchmark else scores / result.benchmark
            result.save(to / f"{result.role}.json")
            score = f"{result.score:.{get_unit(result.unit).digits}f}"
            print(f"{result.benchmark}: {result.role} {score} {result.unit} of {result.n}")
        own = {result.role: result for result in results if result.benchmark == benchmark}
        save_standing(own["reference"], own["tuned"], data, scores)
        models = {role: subject.model for role, subject in subjects.items()}
        chosen.draw(models, data, scores / f"{benchmark}.png", params)
        shutil.rmtree(work)
    _subjects.cache_clear()


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some batches of a benchmark with one encoder, as they are handed to a worker.

    Attributes:
        data: the benchmark's folder.
        kept: folder of what batches gave.
        number, of: see Kept.
    """

    params: Evaluate
    benchmark: str
    device: str
    data: Path
    backbones: Path
    encoder: Path
    role: Role
    kept: Path
    number: int
    of: int

    def __str__(self) -> str:
        return f"share {self.number + 1} of {self.of} of {self.benchmark} ({self.role})"


def measure_share(share: Share) -> None:
    """Measure the share of the first loop that is not whole."""
    try:
        _run(share)
    except ShareMeasured:
        pass


def _run(share: Share) -> BenchmarkResult:
    subjects = _subjects(share.benchmark, share.device, share.backbones, share.encoder)
    kept = Kept(folder=share.kept, share=share.number, of=share.of)
    model, reference = subjects[share.role].model, subjects["reference"].model
    return _benchmark(share.benchmark).run(model, share.data, share.params, reference, kept)


def _benchmark(name: str) -> Benchmark:
    return get_benchmark(name, "clip", "autoencoder")


@functools.lru_cache(maxsize=1)
def _subjects(benchmark: str, device: str, backbones: Path, encoder: Path) -> dict[Role, Subject]:
    """Read once a process."""
    subjects: dict[Role, Subject] = {}
    for role, method, folder in encoder_pair(backbones, encoder):
        model: Any = load_clip(folder, pick_device(device))
        if _benchmark(benchmark).file.MODEL == "autoencoder":
            model = open_autoencoder(model, role, encoder)
        subjects[role] = Subject(model=model, method=method, encoder_sha256=encoder_sha256(folder))
    return subjects


def _made_of(
    chosen: Benchmark, params: Evaluate, subjects: dict[Role, Subject], data_sha256: str, device: str, encoder: Path
) -> str:
    """Hash of all that decides what a batch gives."""
    numbers = dataclasses.replace(params, processes=0)
    weights = [subject.encoder_sha256 for subject in subjects.values()]
    drawing = folder_sha256(encoder) if chosen.file.MODEL == "autoencoder" else ""
    code = inspect.getsource(chosen.file)
    said = (chosen.name, numbers, weights, drawing, data_sha256, device, code, __version__, torch.__version__)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:24]
