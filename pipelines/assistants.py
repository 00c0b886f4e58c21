"""The stages `assistant` and `ask` for Kubeflow: a pipeline of its own, after a run of pipelines/un2clip.py.

Within that pipeline they would make Kubeflow's list of a run longer than it can read (tests/wiring/test_size.py), and
every encoder would wait for its language models, which train for hours and which no rule of the gate reads. This one
takes the two encoders by the addresses of their artifacts. `python -m pipelines.un2clip` compiles it.
"""

from functools import cache, partial
from typing import List  # noqa: UP035 - of list[int] kfp 2.17 does not know the items' type

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.ask.component import ask
from components.assistant.component import assistant
from components.compare_assistants.component import compare_assistants
from components.finish.component import finish
from components.prerequisites_assistants.component import prerequisites_assistants
from components.shapes.component import shapes
from pipelines import resources
from pipelines.resources import CLUSTER, Compiled


@cache
def pipeline(compiled: Compiled) -> GraphComponent:
    """The pipeline for a cluster whose constants are `compiled`; everything else is an argument of a run."""

    @dsl.pipeline(
        name="assistants",
        description="What language models make of two encoders, over several seeds.",
        pipeline_config=resources.pipeline_config(compiled),
    )
    def assistants(
        seed: int,
        device: str,
        checkpoints: str,
        instructions: str,
        benchmark_data: str,
        language_seeds: List[int],  # noqa: UP006
        questions: list,
        shapes_params: dict,
        assistant_params: dict,
        ask_params: dict,
        compare_params: dict,
        backbones_uri: str,
        encoder_uri: str,
        image: str,
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
        volume: str,
        instruction_version: str,
        benchmark_version: str,
        mlflow_secret: str,
        hub_secret: str,
        s3_secret: str,
        requires: list,
        space_gib: float,
    ):
        """State the graph; the parameters are those of pipelines/un2clip.py but for these.

        Args:
            instructions: folder on the volume of what assistants learn from, "" for the laptop world's.
            language_seeds: of the language models, each of which is trained with both encoders; one at least.
            questions: names of the benchmarks that they are asked.
            backbones_uri: address of the artifact `backbones` of an earlier run, whose clip/ is the untouched encoder.
            encoder_uri: address of the artifact `encoder` of the same run.
            assistant_accelerator_limit: number of assistant's accelerators, each of which gets a process.
            instruction_version: hash of the folder `instructions`; another one is a cache miss.
        """
        of_cluster = {name: value for name, value in locals().items() if name in CLUSTER}
        scheduled = partial(resources.set_resources, compiled=compiled, arguments=of_cluster)

        with dsl.ExitHandler(scheduled(finish(nodes=1, volume=resources.WORKDIR)), name="run"):
            checked = scheduled(
                prerequisites_assistants(
                    requires=requires,
                    mounted=compiled.volume,
                    volume=volume,
                    space_gib=space_gib,
                    instructions=instructions,
                    benchmark_data=benchmark_data,
                    questions=questions,
                    language_seeds=language_seeds,
                    backbones_uri=backbones_uri,
                    encoder_uri=encoder_uri,
                    accelerator_type=accelerator_type,
                    accelerator_limit=accelerator_limit,
                    assistant_accelerator_limit=assistant_accelerator_limit,
                    **{name: value for name, value in of_cluster.items() if name.endswith(("_cpu", "_memory"))},
                    node_selector=node_selector,
                    tolerations=tolerations,
                )
            )
            world = scheduled(shapes(params=shapes_params, seed=seed).after(checked))
            backbones = dsl.importer(artifact_uri=backbones_uri, artifact_class=dsl.Model).after(checked)
            encoder = dsl.importer(artifact_uri=encoder_uri, artifact_class=dsl.Model).after(checked)
            with dsl.ParallelFor(language_seeds) as language_seed:
                of_reference, of_tuned = (
                    scheduled(
                        assistant(
                            params=assistant_params,
                            language_seed=language_seed,
                            device=device,
                            checkpoints=resources.checkpoint_folder(compiled, checkpoints),
                            folder=instructions,
                            version=instruction_version,
                            instructions=world.outputs["instructions"],
                            encoder=read.output,
                        ).set_display_name(f"assistant-{role}")
                    )
                    for role, read in (("reference", backbones), ("tuned", encoder))
                )
                answered = scheduled(
                    ask(
                        params=ask_params,
                        questions=questions,
                        device=device,
                        checkpoints=resources.checkpoint_folder(compiled, checkpoints),
                        folder=benchmark_data,
                        version=benchmark_version,
                        benchmarks=world.outputs["benchmarks"],
                        reference=of_reference.outputs["assistant"],
                        tuned=of_tuned.outputs["assistant"],
                    )
                )
            scheduled(
                compare_assistants(
                    params=compare_params,
                    seed=seed,
                    scores=dsl.Collected(answered.outputs["scores"]),
                    encoder=encoder.output,
                )
            )

    return assistants
