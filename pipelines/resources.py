"""What each stage needs from a cluster. Nothing else in the project knows about processors.

Everything that Kubeflow can take as a pipeline parameter is one, with its default in `CLUSTER`, so that
another cluster needs no compilation. Retries, caching and the size of the shared memory must be constants.
"""

from dataclasses import dataclass

from kfp import dsl, kubernetes

from components.image import IMAGE

#: Pipeline parameters and their defaults: they run on a cluster that has no accelerator.
CLUSTER = {
    "image": IMAGE,  # of every stage; on a cluster with a registry of its own: REGISTRY/un2clip:TAG
    "accelerator_type": "nvidia.com/gpu",  # resource name of the device plugin
    "accelerator_limit": "0",  # accelerators of each accelerated stage, a text: no other type reaches a pod's spec
    "cpu": "2",  # cores requested by each accelerated stage
    "memory": "6Gi",  # requested by, and limit of, each accelerated stage
    "node_selector": {},  # labels of the nodes for accelerated stages
    "tolerations": [],  # taints that accelerated stages tolerate, as in a pod's spec
    "mlflow_secret": "un2clip-mlflow",  # Secret with the keys of MLFLOW_KEYS, each optional
}

#: Without the Secret, or without a key, the variable is unset.
MLFLOW_KEYS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

#: Data loader workers hand batches over through /dev/shm, of which a pod has 64 MiB unless told otherwise.
SHARED_MEMORY = "2Gi"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one stage needs.

    Attributes:
        accelerated: runs on the nodes, with the cpu, memory and accelerators, that the pipeline's parameters name.
        cpu: cores requested by a stage that is not accelerated.
        memory: requested by, and limit of, a stage that is not accelerated.
        retries: of a lost node or a refused connection; our own stages give the same result each time.
        cached: reuse the outputs of an equal task; never for a stage that acts on the world outside.
    """

    accelerated: bool = False
    cpu: str = "1"
    memory: str = "4Gi"
    retries: int = 0
    cached: bool = True


STAGES = {
    "shapes": Needs(),
    "ingest": Needs(cpu="2"),
    "backbones": Needs(accelerated=True, retries=2),
    "latents": Needs(accelerated=True, retries=2),
    "finetune": Needs(accelerated=True, retries=2),
    "diffusion_loss": Needs(accelerated=True, retries=2),
    "evaluate": Needs(accelerated=True, retries=2),
    "reconstruct": Needs(accelerated=True, retries=2),
    "compare": Needs(),
    "promote": Needs(retries=2, cached=False),
}


def place(
    task: dsl.PipelineTask,
    *,
    image: str,
    accelerator_type: str,
    accelerator_limit: str,
    cpu: str,
    memory: str,
    node_selector: dict,
    tolerations: list,
    mlflow_secret: str,
) -> dsl.PipelineTask:
    """Give a stage's task the resources it needs; the arguments are the pipeline parameters of `CLUSTER`."""
    needs = STAGES[task.component_spec.name.replace("-", "_")]
    task.set_container_image(image)
    task.set_caching_options(needs.cached)
    if needs.retries:
        task.set_retry(needs.retries, backoff_duration="60s", backoff_factor=2.0)
    if needs.accelerated:
        # kfp 2.17 forgets to hand these to the tasks of a loop (the other settings it does hand on)
        task.register_pipeline_channels([accelerator_type, accelerator_limit, cpu, memory])
        task.set_accelerator_type(accelerator_type).set_accelerator_limit(accelerator_limit)
        kubernetes.add_node_selector_json(task, node_selector)
        kubernetes.add_toleration_json(task, tolerations)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    else:
        cpu, memory = needs.cpu, needs.memory
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    # Kubeflow resolves no placeholder in an environment variable, but labels the pod with the run's id
    kubernetes.use_field_path_as_env(task, "UN2CLIP_RUN", "metadata.labels['pipeline/runid']")
    kubernetes.use_secret_as_env(task, mlflow_secret, {key: key for key in MLFLOW_KEYS}, optional=True)
    return task
