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
    import shutil

    from un2clip.cluster.artifacts import describe
    from un2clip.stages import run_stage

    run_stage(
        "compare",
        params,
        seed=seed,
        scores=[diffusion_loss.path, *(each.path for each in scores)],
        encoder=encoder.path,
        reconstructions=reconstructions.path,
        report=report.path,
    )
    report.metadata.update(describe("report", report.path))
    shutil.copyfile(f"{report.path}/index.html", page.path)
