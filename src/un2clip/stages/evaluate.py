"""Stage `evaluate`: one benchmark, the reference and the tuned encoder, every item's outcome kept."""

from dataclasses import dataclass
from pathlib import Path

from un2clip.benchmarks import data_sha256, get_benchmark
from un2clip.checkpoint import encoder_sha256, load_clip
from un2clip.config import at_least_one
from un2clip.evidence import contenders
from un2clip.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The section `evaluate` of params.yaml."""

    batch_size: int

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")


def evaluate(
    params: Evaluate, *, benchmark: str, benchmarks: Path, backbones: Path, encoder: Path, scores: Path
) -> None:
    """Score both encoders on the benchmark's data, in fp32, and write reference.json and tuned.json.

    Args:
        benchmark: a file of un2clip/benchmarks/.
        benchmarks: folder with one folder of data a benchmark.
        backbones: its clip/ is the reference.
        encoder: the tuned checkpoint.
        scores: folder of the two scores files.
    """
    run = get_benchmark(benchmark)
    data = benchmarks / benchmark
    sha256 = data_sha256(data)
    for role, method, folder in contenders(backbones, encoder):
        result = Scores(
            benchmark=benchmark,
            role=role,
            method=method,
            unit="%",
            data_sha256=sha256,
            encoder_sha256=encoder_sha256(folder),
            items=run(load_clip(folder), data, params.batch_size),
        )
        result.save(scores / f"{role}.json")
        print(f"{benchmark}: {role} {result.score:.1f} % of {result.n}")
