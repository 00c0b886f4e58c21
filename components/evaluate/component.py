"""KFP dialect of the stage `evaluate`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: dict,
    benchmark: str,
    device: str,
    benchmarks: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure one benchmark: reference and tuned."""
    import json
    from pathlib import Path

    from un2clip.scores import load_scores
    from un2clip.stages import run_stage

    run_stage(
        "evaluate",
        params,
        benchmark=benchmark,
        device=device,
        benchmarks=benchmarks.path,
        backbones=backbones.path,
        encoder=encoder.path,
        scores=scores.path,
    )
    for result in map(load_scores, sorted(Path(scores.path).glob("*.json"))):
        metrics.log_metric(f"{result.benchmark} {result.role}", result.score)
    Path(metrics.path).write_text(json.dumps(metrics.metadata))  # without a file the task never hits the cache
