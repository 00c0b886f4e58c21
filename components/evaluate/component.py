"""KFP dialect of the stage `evaluate`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: dict,
    benchmark: str,
    device: str,
    folder: str,
    version: str,
    benchmarks: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure one benchmark: reference and tuned.

    A folder on the volume goes before the artifact; its version is there for the cache's key.
    """
    import json
    from pathlib import Path

    from un2clip.cluster.artifacts import describe, scores_of
    from un2clip.stages import run_stage

    run_stage(
        "evaluate",
        params,
        benchmark=benchmark,
        device=device,
        benchmarks=folder or benchmarks.path,
        backbones=backbones.path,
        encoder=encoder.path,
        scores=scores.path,
    )
    scores.metadata.update(describe("scores", scores.path))
    for name, value in scores_of(scores.path).items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(metrics.metadata))  # without a file the task never hits the cache
