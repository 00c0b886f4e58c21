"""KFP dialect of the stage `evaluate`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: dict,
    benchmark: str,
    device: str,
    checkpoints: str,
    folder: str,
    version: str,
    benchmarks: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    encoder: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure one benchmark: reference and tuned.

    A folder on the volume goes before the artifact; its version is there for the cache's key.
    """
    given = locals()
    from un2clip.cluster.task import run

    run("evaluate", given, "scores")
