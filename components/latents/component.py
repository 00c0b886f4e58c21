"""KFP dialect of the stage `latents`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def latents(
    params: dict,
    device: str,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    latents: dsl.Output[dsl.Dataset],
):
    """Encode every image by the generator's VAE, once."""
    given = locals()
    from un2clip.cluster.task import run

    run("latents", given, "latents")
