"""KFP dialect of the stage `promote`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    params: dict,
    compare: dict,
    seed: int,
    scores: dsl.Input[list[dsl.Artifact]],
    diffusion_loss: dsl.Input[dsl.Artifact],
    encoder: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
):
    """Pass the gate, or not, and register the encoder."""
    given = locals()
    from un2clip.cluster.task import run

    run("promote", given, "decision")
