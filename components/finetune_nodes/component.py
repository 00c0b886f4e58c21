"""KFP dialect of the stage `finetune` on several nodes: a Kubeflow TrainJob does the work, this task sees to it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(
    base_image=IMAGE,
    install_kfp_package=False,
    # What the pipeline asks for goes to the TrainJob's nodes. This task itself only needs the volumes.
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def finetune_nodes(
    params: dict,
    method: str,
    seed: int,
    device: str,
    checkpoints: str,
    nodes: int,
    image: str,
    volume: str,
    secrets: str,
    shared_memory: str,
    service_account: str,
    timeout_s: int,
    task_config: dsl.TaskConfig,
    shards: dsl.Input[dsl.Dataset],
    backbones: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    encoder: dsl.Output[dsl.Model],
):
    """Train the encoder on several nodes; the names beyond the stage's own stand in src/un2clip/cluster/nodes.py."""
    from un2clip.cluster.artifacts import describe
    from un2clip.cluster.nodes import finetune_on_nodes
    from un2clip.cluster.trainjob import connect

    finetune_on_nodes(
        params,
        client=connect(),
        nodes=nodes,
        image=image,
        volume=volume,
        secrets=secrets,
        shared_memory=shared_memory,
        service_account=service_account,
        timeout_s=timeout_s,
        task=vars(task_config),
        checkpoints=checkpoints,
        inputs={"shards": shards.path, "backbones": backbones.path, "latents": latents.path},
        arguments={"method": method, "seed": seed, "device": device},
        encoder=encoder.path,
    )
    encoder.metadata.update(describe("encoder", encoder.path))
