"""KFP dialect of the stage `backbones`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def backbones(params: dict, seed: int, device: str, images: dsl.Input[dsl.Dataset], backbones: dsl.Output[dsl.Model]):
    """Make the CLIP to be tuned and the unCLIP that inverts it."""
    from un2clip.cluster.artifacts import describe
    from un2clip.stages import run_stage

    run_stage("backbones", params, seed=seed, device=device, images=images.path, backbones=backbones.path)
    backbones.metadata.update(describe("backbones", backbones.path))
