"""Stage `evaluate`: one benchmark, the reference and the tuned encoder, every item's outcome kept."""

from pathlib import Path

from un2clip.devices import pick_device
from un2clip.evaluation.benchmarks import Options, get_benchmark, get_drawing
from un2clip.evaluation.readers import data_sha256
from un2clip.evidence.lineage import encoder_pair
from un2clip.evidence.scores import Scores
from un2clip.models.clip import Clip, encoder_sha256, load_clip


def evaluate(
    params: Options, *, benchmark: str, device: str, benchmarks: Path, backbones: Path, encoder: Path, scores: Path
) -> None:
    """Score both encoders on the benchmark's data, in fp32, and write reference.json and tuned.json.

    Args:
        benchmark: a file of evaluation/benchmarks/, or `file-dataset` where one file reads several data sets.
        device: auto, cpu or cuda.
        benchmarks: folder with one folder of data a benchmark.
        backbones: its clip/ is the reference.
        encoder: the tuned checkpoint.
        scores: folder of the two scores files, and of a PNG where the benchmark has pictures to show.
    """
    run = get_benchmark(benchmark)
    data = benchmarks / benchmark
    sha256 = data_sha256(data)
    where = pick_device(device)
    encoders = encoder_pair(backbones, encoder)
    clips: dict[str, Clip] = {role: load_clip(folder, where) for role, _, folder in encoders}
    for role, method, folder in encoders:
        measured = run(clips[role], data, params)
        result = Scores(
            benchmark=benchmark,
            role=role,
            method=method,
            unit=measured.unit,
            protocol=measured.protocol,
            data_sha256=sha256,
            encoder_sha256=encoder_sha256(folder),
            items=measured.items,
        )
        result.save(scores / f"{role}.json")
        print(f"{benchmark}: {role} {result.score:.1f} {result.unit} of {result.n}")
    if draw := get_drawing(benchmark):
        draw(clips, data, params, scores / f"{benchmark}.png")
