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
    given = locals()
    from un2clip.cluster.task import run

    run("diffusion_loss", given, "scores")
