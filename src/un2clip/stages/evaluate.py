"""Stage `evaluate`: one benchmark, the reference and the tuned encoder, every item's outcome kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from un2clip.devices import pick_device
from un2clip.evaluation.autoencoding import open_autoencoder
from un2clip.evaluation.measuring import Benchmark, Evaluate, Subject, get_benchmark, measure
from un2clip.evaluation.standing import save_standing
from un2clip.evidence.lineage import encoder_pair
from un2clip.evidence.scores import Role, Scores, mismatch
from un2clip.evidence.units import get_unit
from un2clip.models.clip import Clip, encoder_sha256, load_clip


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
    """Score both encoders on the benchmark's data, in fp32, and write reference.json and tuned.json.

    A benchmark that has further scores has them in folders beside these, each called as in the report.

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
    chosen, data, where = get_benchmark(benchmark, "clip", "autoencoder"), benchmarks / benchmark, pick_device(device)
    subjects, clips = dict[Role, Subject](), list[Clip]()
    texts = Path(checkpoints) / "texts" if checkpoints else None
    for role, method, folder in encoder_pair(backbones, encoder):
        clips.append(load_clip(folder, where).keeping_texts(folder, texts, *clips))
        model: Any = clips[-1]
        if chosen.file.MODEL == "autoencoder":
            model = open_autoencoder(model, role, encoder)
        subjects[role] = Subject(model=model, method=method, encoder_sha256=encoder_sha256(folder))
    results = _measured(chosen, subjects, data, params, known)
    for result in results:
        folder = scores if result.benchmark == benchmark else scores / result.benchmark
        result.save(folder / f"{result.role}.json")
        score = f"{result.score:.{get_unit(result.unit).digits}f}"
        print(f"{result.benchmark}: {result.role} {score} {result.unit} of {result.n}")
    own = {result.role: result for result in results if result.benchmark == benchmark}
    save_standing(own["reference"], own["tuned"], data, scores)
    models = {role: subject.model for role, subject in subjects.items()}
    chosen.draw(models, data, scores / f"{benchmark}.png", params)


def _measured(
    chosen: Benchmark, subjects: dict[Role, Subject], data: Path, params: Evaluate, known: Sequence[Scores]
) -> list[Scores]:
    if not known or chosen.file.MODEL == "autoencoder":  # whose reference is seen through this run's decoder
        return measure(chosen, subjects, data, params)
    reference, tuned = (
        subjects["reference"],
        measure(chosen, {"tuned": subjects["tuned"]}, data, params, subjects["reference"].model),
    )
    before = {each.benchmark: each for each in known if each.encoder_sha256 == reference.encoder_sha256}
    if all(each.benchmark in before and not mismatch(before[each.benchmark], each) for each in tuned):
        return [*(before[each.benchmark] for each in tuned), *tuned]
    return [*measure(chosen, {"reference": reference}, data, params), *tuned]
