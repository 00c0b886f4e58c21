"""KFP dialect of the stage `diffusion_loss`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def diffusion_loss(
    params: dict,
    seed: int,
    device: str,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure, label-free, on held-out images: reference against tuned."""
    import json
    from pathlib import Path

    from un2clip.cluster.artifacts import describe, scores_of
    from un2clip.stages import run_stage

    run_stage(
        "diffusion_loss",
        params,
        seed=seed,
        device=device,
        shards=shards.path,
        backbones=backbones.path,
        latents=latents.path,
        encoder=encoder.path,
        scores=scores.path,
    )
    scores.metadata.update(describe("scores", scores.path))
    for name, value in scores_of(scores.path).items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(metrics.metadata))  # without a file the task never hits the cache
