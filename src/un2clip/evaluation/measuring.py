"""Measure models with a benchmark: its file, the sections `evaluate` and `ask` of params.yaml, and the scores."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, TypeVar

from un2clip.config import at_least
from un2clip.datasets.engine import Engine
from un2clip.errors import UserError
from un2clip.evaluation import benchmarks
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.readers import data_sha256
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.precision import in_bf16
from un2clip.evidence.scores import Role, Scores
from un2clip.models.clip import Clip, Precision

T = TypeVar("T")


def file_names() -> list[str]:
    """The names of the files of benchmarks/."""
    return [module.name for module in iter_modules(benchmarks.__path__)]


def get_file(name: str) -> ModuleType:
    """The file of benchmarks/ called so."""
    return importlib.import_module(f"{benchmarks.__name__}.{name}")


def _with_options(*models: Model) -> Callable[[type[T]], type[T]]:
    """The dataclass with one field more for each benchmark of such models that has options, called as its file."""

    def complete(section: type[T]) -> type[T]:
        files = {name: get_file(name) for name in file_names()}
        fields = [
            (name, file.Options) for name, file in files.items() if file.MODEL in models and hasattr(file, "Options")
        ]
        namespace = {"__module__": section.__module__, "__doc__": section.__doc__}
        return dataclasses.make_dataclass(
            section.__name__, fields, bases=(section,), namespace=namespace, frozen=True, kw_only=True
        )

    return complete


@_with_options("clip", "autoencoder")
@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The section `evaluate` of params.yaml: what all benchmarks of an encoder share, and the options of some.

    Attributes:
        batch_size: images, or windows of images, at once.
        processes: that measure, each its share of the batches; 0 for as many as GPUs are visible, or one.
        engine: who runs them.
        workers: processes that read pictures ahead, beside each of these; 0 for none.
        precision: of the towers of a CLIP; cosines, and what else is no tower, are in fp32.
    """

    batch_size: int
    processes: int
    engine: Engine
    workers: int
    precision: Precision

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "processes", "workers")


@_with_options("mllm")
@dataclass(frozen=True, kw_only=True)
class Ask:
    """The section `ask` of params.yaml: what all benchmarks of a language model share, and the options of some.

    Attributes:
        batch_size: questions at once.
        max_new_tokens: of an answer.
        dtype: of the weights and of what is computed.
    """

    batch_size: int
    max_new_tokens: int
    dtype: Literal["float32", "float16", "bfloat16"]

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark by its whole name, and the file of benchmarks/ that measures it."""

    name: str
    file: ModuleType

    def run(
        self, model: Any, folder: Path, params: Evaluate | Ask, reference: Any = None, spread: Spread = alone
    ) -> BenchmarkResult:
        """What the model reaches on the data in the folder; beside the reference, where the file's `run` takes one."""
        numbers, file = self._numbers(params), self.file
        numbers |= {name: each for name, each in (("reference", reference), ("spread", spread)) if self._takes(name)}
        if hasattr(file, "run"):
            result: BenchmarkResult = file.run(model, folder, **numbers)
        else:
            questions = file.read(folder)
            result = file.score(questions, model.ask(questions, **numbers))
        return result

    def draw(self, models: Mapping[Role, Any], folder: Path, png: Path, params: Evaluate | Ask) -> None:
        """Write the picture of the models, where the benchmark has one."""
        if hasattr(self.file, "draw"):
            self.file.draw(models, folder, png, **self._numbers(params))

    def _takes(self, name: str) -> bool:
        return hasattr(self.file, "run") and name in inspect.signature(self.file.run).parameters

    def _numbers(self, params: Evaluate | Ask) -> dict[str, Any]:
        name = self.file.__name__.rpartition(".")[2]
        own = {"options": getattr(params, name)} if hasattr(self.file, "Options") else {}
        return {"batch_size": params.batch_size} | own


def get_benchmark(name: str, *models: Model) -> Benchmark:
    """The benchmark called `name`: of a file of benchmarks/, or `file-dataset`.

    Args:
        name: of the benchmark.
        models: what kinds can be measured.

    Raises:
        UserError: there is no such file (lists those there are), or it measures another kind of model.
    """
    file = name.partition("-")[0]
    if file not in file_names():
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(file_names())}")
    found = Benchmark(name=name, file=get_file(file))
    # The one place where a model is held against what a benchmark needs, before anything is loaded: an encoder
    # without a pooled embedding is to be refused here too.
    if found.file.MODEL not in models:
        raise UserError(f"benchmark {name} measures a model of the kind {found.file.MODEL}, not {' or '.join(models)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured, and what its scores say of it.

    Attributes:
        model: what the benchmark's `run` takes, such as a Clip.
        method: row of the method table that made its encoder; "reference" for the untouched one.
        encoder_sha256: hash of its encoder's checkpoint.
    """

    model: Any
    method: str
    encoder_sha256: str


def measure(
    benchmark: Benchmark,
    subjects: Mapping[Role, Subject],
    folder: Path,
    params: Evaluate | Ask,
    run: Callable[[Role, str], BenchmarkResult] | None = None,
) -> list[Scores]:
    """The scores of each subject, on the same data with the same options: the benchmark's own, then what it has also.

    Args:
        benchmark: what `get_benchmark` gave.
        subjects: models by their role.
        folder: the benchmark's data.
        params: batch size and options.
        run: gives the result of a subject, on data of this hash; else this process measures it, and keeps nothing.

    Raises:
        UserError: the data are not as they must be; the message names the file.
    """
    sha256 = data_sha256(folder)
    found: list[Scores] = []
    untouched = subjects["reference"].model if "reference" in subjects else None
    for role, subject in subjects.items():
        result = run(role, sha256) if run else benchmark.run(subject.model, folder, params, untouched)
        bf16 = isinstance(subject.model, Clip) and subject.model.precision == "bf16"
        named = {benchmark.name: result} | {f"{benchmark.name}-{name}": each for name, each in result.also.items()}
        found += [
            Scores(
                benchmark=name,
                role=role,
                method=subject.method,
                unit=each.unit,
                protocol=in_bf16(each.protocol) if bf16 else each.protocol,
                data_sha256=sha256,
                encoder_sha256=subject.encoder_sha256,
                items=each.items,
                number=each.number,
            )
            for name, each in named.items()
        ]
    return found
