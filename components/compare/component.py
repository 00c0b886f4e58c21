"""KFP dialect of the stage `compare`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    params: dict,
    seed: int,
    scores: dsl.Input[list[dsl.Artifact]],
    diffusion_loss: dsl.Input[dsl.Artifact],
    encoder: dsl.Input[dsl.Model],
    reconstructions: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
):
    """Write one report: a table, paired intervals, the plots."""
    given = locals()
    from un2clip.cluster.task import run

    run("compare", given, "report")
