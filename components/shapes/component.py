"""KFP dialect of the stage `shapes`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shapes(params: dict, seed: int, images: dsl.Output[dsl.Dataset], benchmarks: dsl.Output[dsl.Dataset]):
    """Render the laptop world: training and held-out tars, and its benchmarks."""
    from un2clip.stages import run_stage

    run_stage("shapes", params, seed=seed, images=images.path, benchmarks=benchmarks.path)
