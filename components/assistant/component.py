"""KFP dialect of the stage `assistant`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def assistant(
    params: dict,
    language_seed: int,
    device: str,
    checkpoints: str,
    folder: str,
    version: str,
    instructions: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    assistant: dsl.Output[dsl.Model],
):
    """Train a language model to read an encoder.

    A folder on the volume goes before the artifact; its version is there for the cache's key.
    """
    given = locals()
    from un2clip.cluster.task import run

    run("assistant", given, "assistant")
