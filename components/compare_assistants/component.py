"""KFP dialect of the stage `compare` where there are scores of assistants alone, and no pictures."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare_assistants(
    params: dict,
    seed: int,
    scores: dsl.Input[list[dsl.Artifact]],
    encoder: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
):
    """Write one report of what language models make of both encoders, over their seeds."""
    given = {**locals(), "reconstructions": encoder}  # in whose folder there is no picture
    from un2clip.cluster.task import run

    run("compare", given, "report")
