"""A Kubeflow TrainJob from beginning to end: made, followed, and deleted whatever happens.

The only module of the package that imports kubeflow's SDK (0.5, Trainer's API v1alpha1). It knows nothing of CLIP.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import CustomTrainerContainer, TrainerClient
from kubeflow.trainer import options as of
from kubernetes.client import ApiException, CoreV1Api
from kubernetes.config import ConfigException

from un2clip.cluster.refusals import advice, reason, status_of
from un2clip.errors import Stopped, UserError

#: Made by Kubeflow Trainer's own installation. It gives every pod torchrun's PET_ variables: number of nodes, this
#: node's number, the first one's address.
RUNTIME = "torch-distributed"
CONTAINER = "node"  # the runtime's name for its pods' only container, and for the job of them
PATIENCE_SECONDS = 300.0  # without an answer from the API server, or until what a former try left is gone
DRAIN_SECONDS = 10.0  # for the last lines of the log
TAIL = 20  # lines of each other node that failed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of the cluster.

    Attributes:
        name: of the TrainJob. A job of this name that is there already is a former try's, and is replaced.
        labels: of the TrainJob and of its pods.
        image: of every node.
        nodes: how many.
        command: of every node's container.
        args: of every node's container.
        env: plain variables. A Secret cannot be given so (kubeflow/sdk#477): mount it.
        resources: of each node, requests and limits alike, such as {"cpu": "8", "nvidia.com/gpu": "8"}.
        pod: what is added to the runtime's pods: fields of the SDK's PodSpecPatch, their values as in a pod's spec.
        volume_mounts: of every node's container, as in a pod's spec.
        timeout_s: after which the cluster ends it, even if nobody is there to delete it; 0 for never.
    """

    name: str
    labels: dict[str, str]
    image: str
    nodes: int
    command: list[str]
    args: list[str]
    env: dict[str, str]
    resources: dict[str, str]
    pod: dict[str, Any]
    volume_mounts: list[dict[str, Any]]
    timeout_s: int


def connect() -> TrainerClient:
    """A client of the cluster around us, or of the kube config's, in its namespace.

    Raises:
        UserError: there is neither.
    """
    try:
        return TrainerClient(KubernetesBackendConfig())
    except ConfigException as error:
        raise UserError(f"no Kubernetes cluster to train on ({error}); several nodes need one") from None


def run(job: Job, client: TrainerClient, *, poll_seconds: float = 5.0) -> None:
    """Create the TrainJob, print the first node's log as it comes, and wait for the end. It is deleted in any case.

    Raises:
        UserError: it was refused, or it failed; one sentence with the reason.
        Stopped: SIGTERM, which is what a task that is cancelled gets.
    """
    with _terminable():
        _remove(job.name, client)
        try:
            _create(job, client)
            print(f"TrainJob {job.name}: {job.nodes} nodes of {_spoken(job.resources)}", flush=True)
            ended = threading.Event()
            log = threading.Thread(target=_show_log, args=(job.name, client, ended, poll_seconds), daemon=True)
            log.start()
            status = _wait(job, client, poll_seconds)
            ended.set()
            log.join(DRAIN_SECONDS)
            if status != "Complete":
                _show_failures(job.name, client)
                raise UserError(f"TrainJob {job.name} failed; its log is above")
        finally:
            delete(job.name, client)


def _create(job: Job, client: TrainerClient) -> None:
    """Post it. The SDK puts the runtime's name, nodes, image, environment and patches together."""
    containers = [of.ContainerPatch(CONTAINER, volume_mounts=job.volume_mounts)]
    pod = of.PodTemplatePatch(metadata={"labels": job.labels}, spec=of.PodSpecPatch(**job.pod, containers=containers))
    node = of.ReplicatedJobPatch(CONTAINER, of.JobTemplatePatch(spec=of.JobSpecPatch(pod)))
    patch = of.TrainingRuntimeSpecPatch(of.JobSetTemplatePatch(spec=of.JobSetSpecPatch([node])))
    trainer = CustomTrainerContainer(
        image=job.image, num_nodes=job.nodes, resources_per_node=job.resources, env=job.env
    )
    options = [
        of.Name(job.name),
        of.Labels(job.labels),
        of.TrainerCommand(job.command),
        of.TrainerArgs(job.args),
        of.RuntimePatch(patch),
        *([of.ActiveDeadlineSeconds(job.timeout_s)] if job.timeout_s else []),
    ]
    try:
        runtime = client.get_runtime(RUNTIME)
    except (RuntimeError, TimeoutError) as error:
        if status_of(error) == 404:
            raise UserError(
                f"the cluster has no training runtime {RUNTIME}; install Kubeflow Trainer 2 with its runtimes"
            ) from None
        raise _refusal(f"read the runtime {RUNTIME}", error, client) from None
    try:
        client.train(runtime=runtime, trainer=trainer, options=options)
    except (RuntimeError, TimeoutError) as error:
        raise _refusal("create a TrainJob", error, client) from None


def _wait(job: Job, client: TrainerClient, poll_seconds: float) -> str:
    """Wait until it is Complete or Failed. What the cluster warns of meanwhile is printed once."""
    told: set[str] = set()
    heard = time.monotonic()
    while True:
        try:
            found = client.get_job(job.name)
            warnings = list(_warnings(job.name, found.creation_timestamp, client.backend.core_api, client))
            heard = time.monotonic()
        except (RuntimeError, TimeoutError, ApiException) as error:
            if status_of(error) == 404:
                raise UserError(f"somebody deleted TrainJob {job.name}") from None
            if status_of(error) in (401, 403) or time.monotonic() - heard > PATIENCE_SECONDS:
                raise _refusal("follow the TrainJob", error, client) from None
        else:
            if found.status in ("Complete", "Failed"):
                return str(found.status)
            for kind, message in warnings:
                if kind == "FailedCreate":  # a pod was refused, and the others would wait for it
                    raise UserError(advice(f"the cluster refused a node: {message}", client.backend.namespace))
                if message not in told:
                    told.add(message)
                    print(f"TrainJob {job.name}: {kind}: {message}", file=sys.stderr, flush=True)
        time.sleep(poll_seconds)


def _warnings(name: str, since: Any, api: CoreV1Api, client: TrainerClient) -> Iterator[tuple[str, str]]:
    """Reason and message of what went wrong with the TrainJob, or its jobs and pods, since it was made."""
    for event in api.list_namespaced_event(client.backend.namespace, field_selector="type=Warning").items:
        at = event.last_timestamp or event.event_time or event.first_timestamp
        about = event.involved_object.name or ""
        if (about == name or about.startswith(f"{name}-")) and at and at >= since:
            yield event.reason or "Warning", " ".join((event.message or "").split())


def _show_log(name: str, client: TrainerClient, ended: threading.Event, poll_seconds: float) -> None:
    """Print the first node's log until the job has ended. What a new connection repeats is not printed again.

    In a thread, because a connection that is lost may leave its reader waiting for ever.
    """
    shown: list[str] = []
    while True:
        last = ended.is_set()
        try:
            known = True
            for i, line in enumerate(client.get_job_logs(name, follow=True)):
                known = known and i < len(shown) and shown[i] == line
                if not known:
                    shown[i:] = [line]
                    print(line, flush=True)
        except Exception as error:  # the pod is not there yet, or no more, or the connection broke
            if last:
                print(f"un2clip: the log may lack its end: {reason(error)}", file=sys.stderr)
        if last:
            return
        ended.wait(poll_seconds)


def _show_failures(name: str, client: TrainerClient) -> None:
    """The last lines of the other nodes that failed: the first one's log says only that they are gone."""
    try:
        for step in client.get_job(name).steps:
            if step.status == "Failed" and step.name != f"{CONTAINER}-0":
                for line in list(client.get_job_logs(name, step=step.name))[-TAIL:]:
                    print(f"{step.name}: {line}", flush=True)
    except (RuntimeError, TimeoutError) as error:
        print(f"un2clip: the other nodes' logs cannot be read: {reason(error)}", file=sys.stderr)


def _remove(name: str, client: TrainerClient) -> None:
    """Remove what a former try left, and wait until none of its pods can write any more."""
    if not delete(name, client):
        return
    print(f"TrainJob {name} of a former try is there; it is replaced", flush=True)
    began = time.monotonic()
    selector = f"jobset.sigs.k8s.io/jobset-name={name}"
    while client.backend.core_api.list_namespaced_pod(client.backend.namespace, label_selector=selector).items:
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise UserError(f"pods of TrainJob {name}, which is deleted, are still there; delete them by hand")
        time.sleep(1)


def delete(name: str, client: TrainerClient) -> bool:
    """Delete a TrainJob; whether there was one. What stands in the way is printed: it must not hide another error."""
    try:
        client.delete_job(name)
    except (RuntimeError, TimeoutError) as error:
        if status_of(error) != 404:
            print(f"un2clip: {_refusal(f'delete TrainJob {name}', error, client)}", file=sys.stderr)
        return False
    return True


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Stopped once, and then leaves time to clean up."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped("cancelled: the TrainJob is deleted; the same run goes on from its newest checkpoint")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refusal(doing: str, error: BaseException, client: TrainerClient) -> UserError:
    return UserError(advice(f"cannot {doing}: {reason(error)}", client.backend.namespace))


def _spoken(resources: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in resources.items())
