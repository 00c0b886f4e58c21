"""Stage `evaluate`: one benchmark, the reference and the tuned encoder, every item's outcome kept."""

import dataclasses
import functools
import hashlib
import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from un2clip import __version__
from un2clip.datasets.engine import at_once, run_tasks
from un2clip.devices import pick_device
from un2clip.evaluation.autoencoding import open_autoencoder
from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evaluation.measuring import Benchmark, Evaluate, Subject, get_benchmark, measure
from un2clip.evaluation.spreading import Kept, ShareMeasured, Unmeasured, close
from un2clip.evaluation.standing import save_standing
from un2clip.evidence.lineage import encoder_pair
from un2clip.evidence.scores import Role, Scores, mismatch
from un2clip.evidence.units import get_unit
from un2clip.files.outputs import only_one
from un2clip.hashes import folder_sha256
from un2clip.models.clip import Clip, Precision, encoder_sha256, load_clip


def evaluate(
    params: Evaluate,
    *,
    benchmark: str,
    device: str,
    checkpoints: str,
    benchmarks: Path,
    backbones: Path,
    encoder: Path,
    scores: Path,
) -> None:
    """Score both encoders on the benchmark's data and write reference.json and tuned.json.

    A benchmark that has further scores has them in folders beside these, each called as in the report. What batches
    gave lies in a hidden folder beside the scores until all are measured; the same command goes on there.

    Args:
        benchmark: a file of evaluation/benchmarks/ that measures an encoder, or `file-dataset` where one file reads
            several data sets.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph, in whose texts/ embeddings of the classes' names are kept for other
            runs; "" for none.
        benchmarks: folder with one folder of data a benchmark.
        backbones: its clip/ is the reference.
        encoder: the tuned checkpoint.
        scores: folder of the scores files, of a PNG where the benchmark has pictures to show, and of a sentence where
            the encoder has a place among published ones.
    """
    names = {"benchmarks": benchmarks, "backbones": backbones, "encoder": encoder, "scores": scores}
    evaluate_knowing(params, (), benchmark=benchmark, device=device, checkpoints=checkpoints, **names)


def evaluate_knowing(
    params: Evaluate,
    known: Sequence[Scores],
    *,
    benchmark: str,
    device: str,
    checkpoints: str,
    benchmarks: Path,
    backbones: Path,
    encoder: Path,
    scores: Path,
) -> None:
    """The same, where scores of the reference may be known, made with the same numbers.

    Args:
        known: what an earlier call has in reference.json, and in those of its further scores. They are written again,
            byte for byte, if they are of this reference, these data and this protocol; else it is measured.
    """
    processes = at_once(params.processes, params.engine, device)
    here = processes == 1 and params.engine == "processes"
    chosen, data, folder = _benchmark(benchmark), benchmarks / benchmark, scores.resolve()
    work = folder.with_name(f".{folder.name}.partial")
    texts = Path(checkpoints) / "texts" if checkpoints else work / "texts"  # workers read them there
    _subjects.cache_clear()  # others may lie in the same folders by now
    subjects = _subjects(benchmark, device, params.precision, texts, backbones, encoder)
    work.mkdir(parents=True, exist_ok=True)

    def run(role: Role, data_sha256: str) -> BenchmarkResult:
        kept = work / _made_of(chosen, params, subjects, data_sha256, pick_device(device).type, encoder)
        for other in work.iterdir():
            if other.is_dir() and other not in (kept, texts):
                shutil.rmtree(other)  # of other data, numbers or encoders
        share = Share(
            params=params, benchmark=benchmark, device=device, texts=texts, data=data, backbones=backbones,
            encoder=encoder, role=role, kept=kept / role, number=0, of=1 if here else 0,
        )  # fmt: skip
        while True:
            try:
                return _run(share)
            except Unmeasured as loop:
                shares = [dataclasses.replace(share, number=number, of=processes) for number in range(processes)]
                for _ in run_tasks(measure_share, shares, processes, params.engine, device):
                    pass
                close(*loop.args)

    with only_one(work / "lock", f"another `un2clip evaluate` writes {scores}; let it end"):
        results = _measured(chosen, subjects, data, params, known, run)
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


def _measured(
    chosen: Benchmark,
    subjects: dict[Role, Subject],
    data: Path,
    params: Evaluate,
    known: Sequence[Scores],
    run: Callable[[Role, str], BenchmarkResult],
) -> list[Scores]:
    if not known or chosen.file.MODEL == "autoencoder":  # whose reference is seen through this run's decoder
        return measure(chosen, subjects, data, params, run)
    reference = subjects["reference"]
    tuned = measure(chosen, {"tuned": subjects["tuned"]}, data, params, run)
    before = {each.benchmark: each for each in known if each.encoder_sha256 == reference.encoder_sha256}
    if all(each.benchmark in before and not mismatch(before[each.benchmark], each) for each in tuned):
        return [*(before[each.benchmark] for each in tuned), *tuned]
    return [*measure(chosen, {"reference": reference}, data, params, run), *tuned]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some batches of a benchmark with one encoder, as they are handed to a worker.

    Attributes:
        texts: folder of embeddings of texts.
        data: the benchmark's folder.
        kept: folder of what batches gave.
        number, of: see Kept.
    """

    params: Evaluate
    benchmark: str
    device: str
    texts: Path
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
    subjects = _subjects(
        share.benchmark, share.device, share.params.precision, share.texts, share.backbones, share.encoder
    )
    kept = Kept(folder=share.kept, share=share.number, of=share.of, workers=share.params.workers)
    model, reference = subjects[share.role].model, subjects["reference"].model
    return _benchmark(share.benchmark).run(model, share.data, share.params, reference, kept)


def _benchmark(name: str) -> Benchmark:
    return get_benchmark(name, "clip", "autoencoder")


@functools.lru_cache(maxsize=1)
def _subjects(
    benchmark: str, device: str, precision: Precision, texts: Path, backbones: Path, encoder: Path
) -> dict[Role, Subject]:
    """Read once a process."""
    subjects, clips = dict[Role, Subject](), list[Clip]()
    for role, method, folder in encoder_pair(backbones, encoder):
        autoencoder = _benchmark(benchmark).file.MODEL == "autoencoder"  # it paints, which is no tower's: fp32
        clip = dataclasses.replace(
            load_clip(folder, pick_device(device)), precision="fp32" if autoencoder else precision
        )
        clips.append(clip.keeping_texts(folder, texts, *clips))
        model: Any = clips[-1]
        if autoencoder:
            model = open_autoencoder(model, role, encoder)
        subjects[role] = Subject(model=model, method=method, encoder_sha256=encoder_sha256(folder))
    return subjects


def _made_of(
    chosen: Benchmark, params: Evaluate, subjects: dict[Role, Subject], data_sha256: str, device: str, encoder: Path
) -> str:
    """Hash of all that decides what a batch gives."""
    numbers = dataclasses.replace(params, processes=0, engine="processes", workers=0)
    weights = [subject.encoder_sha256 for subject in subjects.values()]
    drawing = folder_sha256(encoder) if chosen.file.MODEL == "autoencoder" else ""
    code = inspect.getsource(chosen.file) if hasattr(chosen.file, "__file__") else ""  # one made in memory has none
    said = (chosen.name, numbers, weights, drawing, data_sha256, device, code, __version__, torch.__version__)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:24]
