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
    from un2clip.cluster.artifacts import describe
    from un2clip.stages import run_stage

    run_stage(
        "promote",
        params,
        compare=compare,
        seed=seed,
        scores=[diffusion_loss.path, *(each.path for each in scores)],
        encoder=encoder.path,
        report=report.path,
        decision=decision.path,
    )
    decision.metadata.update(describe("decision", decision.path))
