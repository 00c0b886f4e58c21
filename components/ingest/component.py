"""KFP dialect of the stage `ingest`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(params: dict, folder: str, version: str, images: dsl.Input[dsl.Dataset], shards: dsl.Output[dsl.Dataset]):
    """Turn image-text tars into checked shards; every sample is kept, or rejected with its reason.

    A folder on the volume goes before the artifact; its version is there for the cache's key.
    """
    given = locals()
    from un2clip.cluster.task import run

    run("ingest", given, "shards")
