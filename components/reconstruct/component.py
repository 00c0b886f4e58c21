"""KFP dialect of the stage `reconstruct`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reconstruct(
    params: dict,
    seed: int,
    device: str,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model],
    reconstructions: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
):
    """Draw the original and what the generator makes of each encoder's embedding."""
    from pathlib import Path

    from un2clip.cluster.artifacts import pictures
    from un2clip.stages import run_stage

    run_stage(
        "reconstruct",
        params,
        seed=seed,
        device=device,
        shards=shards.path,
        backbones=backbones.path,
        encoder=encoder.path,
        reconstructions=reconstructions.path,
    )
    Path(page.path).write_text(pictures(reconstructions.path))
