"""The stage `finetune` on several nodes: what one Kubeflow task does to have a TrainJob do its work.

The pods of a TrainJob have no Kubeflow artifacts. So inputs, checkpoints and the encoder go through a volume that the
task and all pods mount at the same place (ReadWriteMany), and every pod runs the stage's own command under torchrun.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from un2clip.cluster import trainjob
from un2clip.errors import UserError
from un2clip.stages import stage_params
from un2clip.tracking import store

#: Each key of each Secret that is mounted below $0 becomes a variable of the command that follows. The SDK can give a
#: node's variables no reference to a Secret, and everybody who may look at a TrainJob could read a value in it.
WITH_SECRETS = (
    'for file in "$0"/*/*; do if [ -f "$file" ]; then set -- "${file##*/}=$(cat "$file")" "$@"; fi; done; exec env "$@"'
)
SHARED_MEMORY = "dshm"


def finetune_on_nodes(
    params: Mapping[str, Any],
    *,
    client: trainjob.TrainerClient,
    nodes: int,
    image: str,
    volume: str,
    secrets: str,
    shared_memory: str,
    service_account: str,
    timeout_s: int,
    task: Mapping[str, Any],
    checkpoints: str,
    encoder: str,
    inputs: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> None:
    """Run the stage `finetune` as a TrainJob, and bring its encoder back.

    A task that is tried again replaces the former try's TrainJob, and goes on from the newest checkpoint.

    Args:
        params: section `finetune`; `compute.processes` is the number on each node; 0 for one an accelerator.
        client: of the cluster.
        nodes: how many.
        image: of every node.
        volume: where the shared volume is mounted, in the task and in the nodes.
        secrets: folder below which Secrets are mounted whose keys the nodes get as variables; those of MLflow.
        shared_memory: size limit of /dev/shm, such as 2Gi.
        service_account: of the nodes; it needs no rights.
        timeout_s: after which the cluster ends the TrainJob; 0 for never.
        task: the Kubeflow task's own settings (fields of dsl.TaskConfig), each as in a pod's spec.
        checkpoints: as of the stage; relative to the volume.
        encoder: folder that gets what the stage writes.
        inputs: the stage's folders by name: shards, backbones, latents.
        arguments: the stage's other arguments by name: method, seed, device.

    Raises:
        UserError: the numbers do not fit together, the volume cannot be used, or see trainjob.run.
        Stopped: the task was cancelled.
    """
    resources = _resources(task)
    processes = _check(params, nodes, resources, arguments)
    if all(mount["mountPath"] != volume for mount in task["volume_mounts"] or []):
        raise UserError(f"no volume is mounted at {volume}; compile with a volume that all nodes can mount")
    run = store.run_key()
    name = job_name(run)
    folder = Path(volume) / name
    try:
        folders = {key: _bring(Path(path), folder / key) for key, path in inputs.items()}
        (folder / "params.yaml").write_text(yaml.safe_dump({"finetune": dict(params)}))
        shutil.rmtree(folder / "encoder", ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the shared volume {folder}: {error.strerror}; it must be writable for the image's user "
            "(fsGroup of its storage), and have room for shards, backbones and latents"
        ) from None
    flags = {
        "params": folder / "params.yaml",
        **arguments,
        "checkpoints": Path(volume) / checkpoints if checkpoints else "",
        **folders,
        "encoder": folder / "encoder",
    }
    job = trainjob.Job(
        name=name,
        labels={"app.kubernetes.io/name": "un2clip", "un2clip/run": name.removeprefix("finetune-")},
        image=image,
        nodes=nodes,
        command=["sh", "-c", WITH_SECRETS, secrets],
        args=["torchrun", f"--nproc-per-node={processes}", "-m", "un2clip", "finetune"]
        + [f"--{key}={value}" for key, value in flags.items()],
        env=_environment(run),
        resources=resources,
        pod=_pod(task, shared_memory, service_account),
        volume_mounts=[*(task["volume_mounts"] or []), {"name": SHARED_MEMORY, "mountPath": "/dev/shm"}],
        timeout_s=timeout_s,
    )
    trainjob.run(job, client)
    shutil.copytree(folder / "encoder", encoder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    shutil.rmtree(folder)


def job_name(run: str) -> str:
    """The name of a run's TrainJob, and of its folder on the volume; a pod's name has room for no more."""
    return f"finetune-{re.sub(r'[^a-z0-9-]', '-', run.lower())[:36].strip('-')}"


def free(client: trainjob.TrainerClient, volume: str) -> None:
    """Remove what a task of this run could not, because it was killed: its TrainJob, and its folder on the volume.

    Args:
        client: of the cluster.
        volume: where the shared volume is mounted. Checkpoints lie beside the folder, and stay.
    """
    name = job_name(store.run_key())
    if trainjob.delete(name, client):
        print(f"TrainJob {name} was still there; it is deleted")
    shutil.rmtree(Path(volume) / name, ignore_errors=True)


def _check(params: Mapping[str, Any], nodes: int, resources: Mapping[str, str], arguments: Mapping[str, Any]) -> int:
    """Processes of each node. What would only be noticed on expensive nodes is said before."""
    section = stage_params("finetune", params)
    used = resources if arguments["device"] != "cpu" else {}
    accelerators = sum(int(amount) for name, amount in used.items() if "/" in name)
    processes = int(section.compute.processes) or max(1, accelerators)
    if nodes < 1:
        raise UserError(f"nodes must be at least 1, got {nodes}")
    if accelerators and accelerators != processes:
        raise UserError(
            f"finetune.compute.processes is {processes} and each node has {accelerators} accelerators; make it 0 or "
            f"{accelerators}, or change finetune_accelerator_limit"
        )
    if section.batch_size % (nodes * processes):
        raise UserError(
            f"finetune.batch_size must be a multiple of the {nodes * processes} processes on {nodes} nodes, got "
            f"{section.batch_size}"
        )
    return processes


def _resources(task: Mapping[str, Any]) -> dict[str, str]:
    """What the task asks for, of each node; without the accelerators of which there are none."""
    given = task["resources"] or {}
    amounts = (given.get("requests") or {}) | (given.get("limits") or {})
    return {name: str(amount) for name, amount in amounts.items() if str(amount) != "0"}


def _pod(task: Mapping[str, Any], shared_memory: str, service_account: str) -> dict[str, Any]:
    memory = {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}}
    return {
        "service_account_name": service_account,
        "volumes": [*(task["volumes"] or []), memory],
        "node_selector": task["node_selector"] or None,
        "affinity": task["affinity"] or None,
        "tolerations": task["tolerations"] or None,
    }


def _environment(run: str) -> dict[str, str]:
    """Plain variables of the nodes: the stage's run in MLflow is the pipeline run's child, as that of any stage."""
    given = {name: os.environ[name] for name in ("UN2CLIP_TRACKING",) if name in os.environ}
    return {"UN2CLIP_RUN": run, "TQDM_POSITION": "-1"} | given  # -1: tqdm ends its lines, or a log would show none


def _bring(source: Path, target: Path) -> Path:
    """Copy a folder to the volume, unless a former try has; a copy that was cut off is made again."""
    if not target.exists():
        print(f"copying {target.name} to {target}", flush=True)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=shutil.copyfile)
        partial.rename(target)
    return target
