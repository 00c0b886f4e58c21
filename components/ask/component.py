"""KFP dialect of the stage `ask`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ask(
    params: dict,
    questions: list,
    device: str,
    checkpoints: str,
    folder: str,
    version: str,
    benchmarks: dsl.Input[dsl.Dataset],
    reference: dsl.Input[dsl.Model],
    tuned: dsl.Input[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Ask both assistants of one language model.

    A folder on the volume goes before the artifact; its version is there for the cache's key.
    """
    given = locals()
    from un2clip.cluster.task import run

    run("ask", given, "scores")
