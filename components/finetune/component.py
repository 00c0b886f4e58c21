"""KFP dialect of the stage `finetune`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    params: dict,
    method: str,
    seed: int,
    device: str,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    encoder: dsl.Output[dsl.Model],
):
    """Train the encoder until the generator's diffusion loss falls: the method."""
    from un2clip.stages import run_stage

    run_stage(
        "finetune",
        params,
        method=method,
        seed=seed,
        device=device,
        shards=shards.path,
        backbones=backbones.path,
        encoder=encoder.path,
    )
