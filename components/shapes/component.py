"""KFP dialect of the stage `shapes`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shapes(
    params: dict,
    seed: int,
    images: dsl.Output[dsl.Dataset],
    benchmarks: dsl.Output[dsl.Dataset],
    instructions: dsl.Output[dsl.Dataset],
):
    """Render the laptop world: training and held-out tars, its benchmarks, and what a language model learns from."""
    given = locals()
    from un2clip.cluster.task import run

    run("shapes", given)
