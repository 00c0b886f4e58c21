"""KFP dialect of the stage `finetune`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    params: dict,
    method: str,
    seed: int,
    device: str,
    checkpoints: str,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    encoder: dsl.Output[dsl.Model],
):
    """Train the encoder until the generator's diffusion loss falls: the method."""
    given = locals()
    from un2clip.cluster.task import run

    run("finetune", given, "encoder")
