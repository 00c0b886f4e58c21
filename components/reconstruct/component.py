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
    given = locals()
    from un2clip.cluster.task import run

    run("reconstruct", given, "reconstructions")
