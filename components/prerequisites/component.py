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
    shapes_cpu: str,
    shapes_memory: str,
    ingest_cpu: str,
    ingest_memory: str,
    backbones_cpu: str,
    backbones_memory: str,
    latents_cpu: str,
    latents_memory: str,
    finetune_cpu: str,
    finetune_memory: str,
    diffusion_loss_cpu: str,
    diffusion_loss_memory: str,
    evaluate_cpu: str,
    evaluate_memory: str,
    reconstruct_cpu: str,
    reconstruct_memory: str,
    compare_cpu: str,
    compare_memory: str,
    promote_cpu: str,
    promote_memory: str,
    node_selector: dict,
    tolerations: list,
):
    """Look for services, secrets, nodes, data and space; say all that is missing, and fail then."""
    requests = {name: value for name, value in locals().items() if name.endswith(("_cpu", "_memory"))}
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
        requests=requests,
        node_selector=node_selector,
        tolerations=tolerations,
    )
