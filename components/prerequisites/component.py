"""The first task: what a run needs, before anything costs money. Kubeflow alone has it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prerequisites(
    requires: list,
    mounted: bool,
    volume: str,
    space_gib: float,
    images: str,
    benchmark_data: str,
    benchmarks: list,
    accelerator_type: str,
    accelerator_limit: str,
    finetune_accelerator_limit: str,
    node_selector: dict,
    tolerations: list,
):
    """Look for services, secrets, nodes, data and space; say all that is missing, and fail then."""
    from un2clip.cluster.prerequisites import check_prerequisites

    check_prerequisites(
        requires=requires,
        mounted=mounted,
        volume=volume,
        space_gib=space_gib,
        images=images,
        benchmark_data=benchmark_data,
        benchmarks=benchmarks,
        accelerator_type=accelerator_type,
        accelerators=[accelerator_limit, finetune_accelerator_limit],
        node_selector=node_selector,
        tolerations=tolerations,
    )
