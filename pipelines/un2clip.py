"""The graph of dvc.yaml for Kubeflow, task by task in the same order; a test proves the two equal.

Compile it, with the numbers of params.yaml, world.yaml and clusters/*.yaml as defaults, to the checked-in files:

    python -m pipelines.un2clip

or, with overlays on either, to a file of your own:

    python -m pipelines.un2clip --params OVERLAY.yaml --cluster MINE.yaml --to MY-PIPELINE.yaml
"""

from functools import cache, partial

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.backbones.component import backbones
from components.compare.component import compare
from components.diffusion_loss.component import diffusion_loss
from components.evaluate.component import evaluate
from components.finetune.component import finetune as finetune_alone
from components.finetune_nodes.component import finetune_nodes
from components.finish.component import finish
from components.ingest.component import ingest
from components.latents.component import latents
from components.prerequisites.component import prerequisites
from components.promote.component import promote
from components.reconstruct.component import reconstruct
from components.shapes.component import shapes
from pipelines import resources
from pipelines.resources import CLUSTER, Compiled


@cache
def pipeline(compiled: Compiled) -> GraphComponent:
    """The pipeline for a cluster whose constants are `compiled`; everything else is an argument of a run."""

    @dsl.pipeline(
        name="un2clip",
        description="Images in, a CLIP image encoder that sees more out, with the evidence.",
        pipeline_config=resources.pipeline_config(compiled),
    )
    def un2clip(
        seed: int,
        method: str,
        device: str,
        checkpoints: str,
        images: str,
        benchmark_data: str,
        benchmarks: list,
        shapes_params: dict,
        ingest_params: dict,
        backbones_params: dict,
        latents_params: dict,
        finetune_params: dict,
        diffusion_loss_params: dict,
        evaluate_params: dict,
        reconstruct_params: dict,
        compare_params: dict,
        promote_params: dict,
        image: str,
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
        volume: str,
        data_version: str,
        benchmark_version: str,
        mlflow_secret: str,
        hub_secret: str,
        s3_secret: str,
        requires: list,
        space_gib: float,
    ):
        """State the graph. Each stage has its own section, so that a knob of one spares the others' cache.

        So have its cores and its memory, `STAGE_cpu` and `STAGE_memory`, which are in a task's cache key too.

        Args:
            seed: of everything random.
            method: row of the method table.
            device: auto, cpu or cuda, for the stages that compute.
            checkpoints: folder for the state of trainings that are not finished; it helps where it outlives a pod.
            images: folder of image-text tars on the volume, "" for the laptop world.
            benchmark_data: folder on the volume with one folder of data a benchmark, "" for the laptop world's.
            benchmarks: names of the benchmarks to evaluate.
            shapes_params: section `shapes` of world.yaml, whole; each other `*_params` is its own section.
            image: container image of every task.
            accelerator_type: resource name of the accelerators, such as nvidia.com/gpu.
            accelerator_limit: number of accelerators of each accelerated task, as a text; "0" for none.
            finetune_accelerator_limit: number of finetune's accelerators, each of which gets a process.
            node_selector: labels of the nodes for accelerated tasks.
            tolerations: tolerations of accelerated tasks, as in a pod's spec.
            volume: name of the claim that is mounted, where the pipeline was compiled with a volume.
            data_version: hash of the folder `images`; another one is a cache miss.
            benchmark_version: hash of the folder `benchmark_data`; another one is a cache miss.
            mlflow_secret: name of an optional Secret with MLFLOW_TRACKING_URI and its credentials.
            hub_secret: name of an optional Secret with HF_TOKEN, for gated weights.
            s3_secret: name of an optional Secret with AWS_ACCESS_KEY_ID and its like, for MLflow's artifacts.
            requires: what the first task must find, or the run ends there: mlflow, hub, s3, nodes.
            space_gib: free space that it must find where the run works.
        """
        of_cluster = {name: value for name, value in locals().items() if name in CLUSTER}
        scheduled = partial(resources.set_resources, compiled=compiled, arguments=of_cluster)
        # the same stage, with the same names and outputs, as the work of a TrainJob
        together = partial(finetune_nodes, image=image, **resources.multi_node_args(compiled))
        finetune = together if compiled.nodes > 1 else finetune_alone

        with dsl.ExitHandler(scheduled(finish(nodes=compiled.nodes, volume=resources.WORKDIR)), name="run"):
            checked = scheduled(
                prerequisites(
                    requires=requires,
                    mounted=compiled.volume,
                    volume=volume,
                    space_gib=space_gib,
                    images=images,
                    benchmark_data=benchmark_data,
                    benchmarks=benchmarks,
                    accelerator_type=accelerator_type,
                    accelerator_limit=accelerator_limit,
                    finetune_accelerator_limit=finetune_accelerator_limit,
                    **{name: value for name, value in of_cluster.items() if name.endswith(("_cpu", "_memory"))},
                    node_selector=node_selector,
                    tolerations=tolerations,
                )
            )
            world = scheduled(shapes(params=shapes_params, seed=seed).after(checked))
            ingested = scheduled(
                ingest(params=ingest_params, folder=images, version=data_version, images=world.outputs["images"])
            )
            pretrained = scheduled(
                backbones(params=backbones_params, seed=seed, device=device, images=world.outputs["images"])
            )
            encoded = scheduled(
                latents(
                    params=latents_params,
                    device=device,
                    shards=ingested.outputs["shards"],
                    backbones=pretrained.outputs["backbones"],
                )
            )
            tuned = scheduled(
                finetune(
                    params=finetune_params,
                    method=method,
                    seed=seed,
                    device=device,
                    checkpoints=resources.checkpoint_folder(compiled, checkpoints),
                    shards=ingested.outputs["shards"],
                    backbones=pretrained.outputs["backbones"],
                    latents=encoded.outputs["latents"],
                )
            )
            diagnosed = scheduled(
                diffusion_loss(
                    params=diffusion_loss_params,
                    seed=seed,
                    device=device,
                    shards=ingested.outputs["shards"],
                    backbones=pretrained.outputs["backbones"],
                    latents=encoded.outputs["latents"],
                    encoder=tuned.outputs["encoder"],
                )
            )
            with dsl.ParallelFor(benchmarks, parallelism=compiled.parallel_benchmarks) as benchmark:
                evaluated = scheduled(
                    evaluate(
                        params=evaluate_params,
                        benchmark=benchmark,
                        device=device,
                        checkpoints=checkpoints,  # for texts alone: no pod waits for finetune's volume
                        folder=benchmark_data,
                        version=benchmark_version,
                        benchmarks=world.outputs["benchmarks"],
                        backbones=pretrained.outputs["backbones"],
                        encoder=tuned.outputs["encoder"],
                    )
                )
            drawn = scheduled(
                reconstruct(
                    params=reconstruct_params,
                    seed=seed,
                    device=device,
                    shards=ingested.outputs["shards"],
                    backbones=pretrained.outputs["backbones"],
                    encoder=tuned.outputs["encoder"],
                )
            )
            # A list of artifacts can only be collected from one loop, so the diffusion loss's scores come beside it.
            compared = scheduled(
                compare(
                    params=compare_params,
                    seed=seed,
                    scores=dsl.Collected(evaluated.outputs["scores"]),
                    diffusion_loss=diagnosed.outputs["scores"],
                    encoder=tuned.outputs["encoder"],
                    reconstructions=drawn.outputs["reconstructions"],
                )
            )
            scheduled(
                promote(
                    params=promote_params,
                    compare=compare_params,
                    seed=seed,
                    scores=dsl.Collected(evaluated.outputs["scores"]),
                    diffusion_loss=diagnosed.outputs["scores"],
                    encoder=tuned.outputs["encoder"],
                    report=compared.outputs["report"],
                )
            )

    return un2clip


if __name__ == "__main__":
    from pipelines.compiling import main  # here, since it imports this module

    main()
