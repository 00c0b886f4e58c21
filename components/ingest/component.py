"""KFP dialect of the stage `ingest`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(params: dict, images: dsl.Input[dsl.Dataset], shards: dsl.Output[dsl.Dataset]):
    """Turn image-text tars into checked shards; every sample is kept, or rejected with its reason."""
    from un2clip.stages import run_stage

    run_stage("ingest", params, images=images.path, shards=shards.path)
