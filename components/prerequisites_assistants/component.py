"""The first task of pipelines/assistants.py: what its run needs, before anything costs money."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prerequisites_assistants(
    requires: list,
    mounted: bool,
    volume: str,
    space_gib: float,
    instructions: str,
    benchmark_data: str,
    questions: list,
    language_seeds: list,
    backbones_uri: str,
    encoder_uri: str,
    accelerator_type: str,
    accelerator_limit: str,
    assistant_accelerator_limit: str,
    shapes_cpu: str,
    shapes_memory: str,
    assistant_cpu: str,
    assistant_memory: str,
    ask_cpu: str,
    ask_memory: str,
    compare_cpu: str,
    compare_memory: str,
    node_selector: dict,
    tolerations: list,
):
    """Look for services, secrets, nodes, data and space; say all that is missing, and fail then."""
    given = locals()
    from un2clip.cluster.prerequisites import check_prerequisites

    check_prerequisites(
        requires=requires,
        mounted=mounted,
        volume=volume,
        space_gib=space_gib,
        images="",
        instructions=instructions,
        benchmark_data=benchmark_data,
        benchmarks=questions,
        accelerator_type=accelerator_type,
        accelerators=[accelerator_limit, assistant_accelerator_limit],
        requests={name: value for name, value in given.items() if name.endswith(("_cpu", "_memory"))},
        node_selector=node_selector,
        tolerations=tolerations,
        named={name: given[name] for name in ("language_seeds", "questions", "backbones_uri", "encoder_uri")},
    )
