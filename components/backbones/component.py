"""KFP dialect of the stage `backbones`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def backbones(params: dict, seed: int, device: str, images: dsl.Input[dsl.Dataset], backbones: dsl.Output[dsl.Model]):
    """Make the CLIP to be tuned and the unCLIP that inverts it."""
    given = locals()
    from un2clip.cluster.task import run

    run("backbones", given, "backbones")
