"""What each task needs from a cluster. Nothing else in the project knows about processors.

The numbers are in clusters/*.yaml: `arguments` are pipeline parameters, so that another cluster needs no
compilation; `compiled` is what kfp 2.17 takes only as constants (retries, timeout, caching, the size of the
shared memory, whether there is a volume at all: a task whose claim has no name does not start).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import dsl, kubernetes

from components.image import IMAGE
from pipelines.sources import shorten
from un2clip.cluster.prerequisites import SEVERAL
from un2clip.cluster.secret_files import MOUNTED, SECRETS
from un2clip.config import at_least, build, read_yaml
from un2clip.errors import UserError

DAY_S = 86_400  # room for a pod to be scheduled, and its image pulled, beside the time limit
MONTH_S = 30 * DAY_S
CLUSTERS = Path(__file__).parent / "clusters"
#: The image's working directory (docker/Dockerfile), where the volume is mounted: there a relative path of
#: params.yaml means on the cluster what it means in the repository.
WORKDIR = "/work"
NODE_ACCOUNT = "un2clip-node"  # service account of a TrainJob's nodes, without rights; pipelines/manifests makes it


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """Section `compiled` of clusters/*.yaml, where the meanings and units are."""

    volume: bool
    nodes: int
    shared_memory: str
    retries: int
    backoff_s: int
    timeout_s: int
    caching: bool
    parallel_benchmarks: int
    workspace: str
    run_deadline_s: int
    ttl_s: int

    def __post_init__(self) -> None:
        at_least(self, 1, "nodes")
        at_least(self, 0, "run_deadline_s", "ttl_s")
        if self.workspace and self.volume:
            raise ValueError("workspace must be empty with a volume, on which checkpoints outlive a run already")
        if self.nodes > 1 and not self.volume:
            raise ValueError(f"nodes must be 1 without a volume, on which they would meet; got {self.nodes}")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster: the pipeline arguments that are about it, and what must be known to the compiler."""

    arguments: dict[str, Any]
    compiled: Compiled


def read_cluster(overlay: Path | None = None) -> Cluster:
    """Read clusters/plain.yaml, with another file of the same keys laid over it.

    Raises:
        UserError: the file has a key that plain.yaml does not have, or a value of another type.
    """
    sections = read_yaml(CLUSTERS / "plain.yaml")
    changes = read_yaml(overlay) if overlay else {}
    if unknown := [key for key in changes if key not in sections]:
        raise UserError(f"{overlay}: unknown section {unknown[0]}; known: {', '.join(sections)}")
    for name, section in sections.items():
        for key, value in (changes.get(name) or {}).items():
            if key not in section:
                raise UserError(f"{overlay}: unknown key {name}.{key}; known: {', '.join(section)}")
            if type(value) is not (kind := type(section[key])) and (kind, type(value)) != (float, int):
                said = f"must be a {kind.__name__}, as {section[key]!r} is; got {value!r}"
                raise UserError(f"{overlay}: {name}.{key} {said}")
            section[key] = kind(value)
    arguments = sections["arguments"]
    arguments["image"] = arguments["image"] or IMAGE
    return Cluster(arguments=arguments, compiled=build(Compiled, sections["compiled"], "compiled"))


#: Pipeline parameters about the cluster, and their defaults: they run on one that has no accelerator.
CLUSTER = read_cluster().arguments


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """What one task needs.

    Attributes:
        accelerated: runs on the nodes, with the accelerators, that the pipeline's parameters name.
        cpu: cores requested by a task that is no stage; a stage's are a parameter, `STAGE_cpu`.
        memory: requested by, and limit of, a task that is no stage; a stage's is a parameter, `STAGE_memory`.
        retried: again after a failure; not where a second try would say the same as the first.
        cached: reuse the outputs of an equal task; never for one that looks at, or acts on, the world outside.
        volume: reads or writes on the volume, where there is one.
        secrets: parameters that name the Secrets whose variables it gets.
    """

    accelerated: bool = False
    cpu: str = ""
    memory: str = ""
    retried: bool = False
    cached: bool = True
    volume: bool = False
    secrets: tuple[str, ...] = ("mlflow_secret", "s3_secret")


STAGES = {
    "shapes": TaskResources(),
    "ingest": TaskResources(volume=True),
    "backbones": TaskResources(accelerated=True, retried=True, volume=True, secrets=tuple(SECRETS)),
    "latents": TaskResources(accelerated=True, retried=True),
    "finetune": TaskResources(accelerated=True, retried=True, volume=True),
    "diffusion_loss": TaskResources(accelerated=True, retried=True),
    "evaluate": TaskResources(accelerated=True, retried=True, volume=True),
    "reconstruct": TaskResources(accelerated=True, retried=True),
    "assistant": TaskResources(accelerated=True, retried=True, volume=True, secrets=tuple(SECRETS)),
    "ask": TaskResources(accelerated=True, retried=True, volume=True),
    "compare": TaskResources(),
    "promote": TaskResources(retried=True, cached=False),
}

#: Tasks that only a cluster needs, beside those of dvc.yaml: the first and the last.
EXTRAS = {
    "prerequisites": TaskResources(cpu="500m", memory="1Gi", cached=False, volume=True, secrets=tuple(SECRETS)),
    "finish": TaskResources(cpu="500m", memory="1Gi", cached=False, volume=True),
}


def set_resources(task: dsl.PipelineTask, compiled: Compiled, arguments: Mapping[str, Any]) -> dsl.PipelineTask:
    """Give a task the resources it needs.

    Args:
        task: of a stage, or one of EXTRAS.
        compiled: the cluster's constants.
        arguments: the pipeline parameters named in `CLUSTER`.
    """
    component = task.component_spec.name.replace("-", "_")
    # what finetune_nodes asks for goes to its TrainJob's nodes; of pipelines/assistants.py are the others
    name = component.removesuffix("_nodes").removesuffix("_assistants")
    needs = (STAGES | EXTRAS)[name]
    task.container_spec.command = shorten(task.container_spec.command)
    task.set_container_image(arguments["image"])
    task.set_caching_options(needs.cached and compiled.caching)
    if needs.retried and compiled.retries:
        window = f"{retry_window_s(compiled)}s"
        task.set_retry(compiled.retries, f"{compiled.backoff_s}s", backoff_factor=2.0, backoff_max_duration=window)
    kubernetes.set_timeout(task, compiled.timeout_s)
    cpu, memory = needs.cpu, needs.memory
    if name in STAGES:
        cpu, memory = arguments[f"{name}_cpu"], arguments[f"{name}_memory"]
        task.register_pipeline_channels([cpu, memory])  # kfp 2.17 forgets to hand these to the tasks of a loop
    if needs.accelerated:
        _accelerate(task, compiled, arguments, arguments[f"{name}_" * (name in SEVERAL) + "accelerator_limit"])
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    # Kubeflow resolves no placeholder in an environment variable, but labels the pod with the run's id
    kubernetes.use_field_path_as_env(task, "UN2CLIP_RUN", "metadata.labels['pipeline/runid']")
    for secret in needs.secrets:  # files, of which cluster/secret_files.py makes variables
        kubernetes.use_secret_as_volume(task, arguments[secret], f"{MOUNTED}/{secret}", optional=True)
    if needs.volume and compiled.volume:
        kubernetes.mount_pvc(task, arguments["volume"], WORKDIR)
    return task


def retry_window_s(compiled: Compiled) -> int:
    """Seconds from the first attempt's start within which a task is tried again, and every attempt must end.

    kfp's default is an hour: no task that ran longer would be tried again. This one has room for every attempt to its
    time limit and for the waits between them, and is a month at least: without a limit a stage may run for weeks.
    """
    waits = compiled.backoff_s * (2**compiled.retries - 1)
    return max(MONTH_S, (compiled.retries + 1) * (compiled.timeout_s + DAY_S) + waits)


def pipeline_config(compiled: Compiled) -> dsl.PipelineConfig | None:
    """What holds for a run as a whole, or None where the backend's own settings do.

    Raises:
        UserError: the workspace is no quantity of Kubernetes'.
    """
    if not (compiled.workspace or compiled.run_deadline_s or compiled.ttl_s):
        return None
    try:
        workspace = dsl.WorkspaceConfig(size=compiled.workspace) if compiled.workspace else None
    except ValueError as error:
        raise UserError(f"compiled.workspace: {error}") from None
    return dsl.PipelineConfig(
        workspace=workspace,
        ttl_seconds_after_finished=compiled.ttl_s or None,
        active_deadline_seconds=compiled.run_deadline_s or None,
    )


def checkpoint_folder(compiled: Compiled, given: Any) -> Any:
    """The argument of that name, or a folder on the run's own claim, where a training that is tried again goes on."""
    return f"{dsl.WORKSPACE_PATH_PLACEHOLDER}/checkpoints" if compiled.workspace else given


def multi_node_args(compiled: Compiled) -> dict[str, Any]:
    """What `finetune_nodes` is told beyond the stage's own names; the rest it has from its task's settings."""
    return {
        "nodes": compiled.nodes,
        "volume": WORKDIR,
        "secrets": MOUNTED,
        "shared_memory": compiled.shared_memory,
        "service_account": NODE_ACCOUNT,
        "timeout_s": compiled.timeout_s,
    }


def _accelerate(task: dsl.PipelineTask, compiled: Compiled, arguments: Mapping[str, Any], limit: Any) -> None:
    task.register_pipeline_channels([arguments["accelerator_type"], limit])  # as above; the rest it does hand on
    task.set_accelerator_type(arguments["accelerator_type"]).set_accelerator_limit(limit)
    kubernetes.add_node_selector_json(task, arguments["node_selector"])
    kubernetes.add_toleration_json(task, arguments["tolerations"])
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=compiled.shared_memory)
