"""The component that trains on several nodes, with a cluster whose nodes are processes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from tests.kubernetes_stub import Cluster, Log, kube_config, running
from un2clip.config import merge
from un2clip.stages import run_stage

ROOT = Path(__file__).parents[2]
NAME = "finetune-run-1"

#: What Kubeflow's executor does: the component's function with its task's configuration and its artifacts.
TASK = """
import json, sys
from kfp import dsl
from components.finetune_nodes.component import finetune_nodes
given = json.load(open(sys.argv[1]))
artifacts = {name: dsl.Artifact(uri=path) for name, path in given["artifacts"].items()}
finetune_nodes.python_func(**given["parameters"], **artifacts, task_config=dsl.TaskConfig(**given["task"]))
"""


class Processes(Cluster):
    """Runs each node of a TrainJob as a process, with the variables that Kubeflow Trainer's torch plugin sets."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__()
        self.folder, self.port = folder, port
        self.running: list[subprocess.Popen[str]] = []

    def created(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        for node in range(trainer["numNodes"]):
            variables = {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                "OMP_NUM_THREADS": "1",
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": "auto",
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(self.port),
            } | {each["name"]: each["value"] for each in trainer["env"]}
            words = [*trainer["command"], *trainer["args"]]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            self.running.append(subprocess.Popen(words, cwd=self.folder, env=variables, **pipes))
            log = Log(ended=False)
            self.add_pod(job["metadata"]["name"], node, log)
            Thread(target=self.read, args=(self.running[-1], log), daemon=True).start()
        Thread(target=self.watch, args=(job["metadata"]["name"],), daemon=True).start()

    def read(self, process: subprocess.Popen[str], log: Log) -> None:
        assert process.stdout
        for line in process.stdout:
            log.lines.append(line.rstrip("\n"))
        log.ended.set()

    def watch(self, job: str) -> None:
        codes = [process.wait() for process in self.running]
        if job in self.jobs:
            self.finish(job, "Failed" if any(codes) else "Complete")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def section(tiny: Any, steps: int) -> dict[str, Any]:
    return merge(tiny.params["finetune"], {"phases": {"tune": {"steps": steps}}})


def start(tiny: Any, cluster: Cluster, folder: Path, params: dict[str, Any]) -> subprocess.Popen[str]:
    """The task of the pipeline, with two nodes."""
    volume = folder / "volume"
    volume.mkdir(exist_ok=True)
    given = {
        "artifacts": {name: str(getattr(tiny, name)) for name in ("shards", "backbones", "latents")}
        | {"encoder": str(folder / "encoder")},
        "parameters": {
            "params": params,
            "method": "un2clip-anchored",
            "seed": 3,
            "device": "cpu",
            "checkpoints": "checkpoints",
            "nodes": 2,
            "image": "un2clip:test",
            "volume": str(volume),
            "secrets": str(folder / "secrets"),
            "shared_memory": "1Gi",
            "service_account": "un2clip-node",
            "timeout_s": 3600,
        },
        "task": {
            "resources": {"requests": {"cpu": "1"}},
            "volume_mounts": [{"name": "claim", "mountPath": str(volume)}],
        },
    }
    (folder / "task.json").write_text(json.dumps(given))
    environment = os.environ | {
        "KUBECONFIG": str(kube_config(cluster, folder / "kubeconfig")),
        "UN2CLIP_RUN": "run-1",
        "UN2CLIP_TRACKING": "off",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = [sys.executable, "-c", TASK, str(folder / "task.json")]
    return subprocess.Popen(words, cwd=folder, env=environment, **pipes)


def kill_a_node(cluster: Processes) -> None:
    """As when a machine is lost: nothing of it has time to say anything."""
    node = psutil.Process(cluster.running[1].pid)
    for process in [*node.children(recursive=True), node]:
        process.kill()


def test_two_nodes_train_as_one_process_though_one_is_lost(tiny: Any, tmp_path: Path) -> None:
    """The very command of the TrainJob, on two nodes that meet over loopback, gives the losses of one process.

    In the middle a node is killed: the job fails, and so does the task. Tried again, it goes on from the checkpoint.
    """
    (tmp_path / "secrets" / "mlflow").mkdir(parents=True)
    (tmp_path / "secrets" / "mlflow" / "MLFLOW_TRACKING_TOKEN").write_text("s3cret")
    params = section(tiny, steps=20)
    with running(Processes(tmp_path, free_port())) as cluster:
        task = start(tiny, cluster, tmp_path, params)
        began = time.monotonic()
        while not list((tmp_path / "volume").glob("checkpoints/*/step_????????")):
            assert time.monotonic() - began < 120 and task.poll() is None
            time.sleep(0.01)
        kill_a_node(cluster)
        first, _ = task.communicate(timeout=120)
        assert task.returncode != 0 and f"TrainJob {NAME} failed; its log is above" in first
        assert cluster.jobs == {} and not (tmp_path / "encoder").exists()

        cluster.running.clear()
        cluster.port = free_port()
        again = start(tiny, cluster, tmp_path, params)
        second, _ = again.communicate(timeout=240)
    assert again.returncode == 0, second
    assert "goes on after step" in second and "s3cret" not in first + second
    assert "encoder: " in second, "the bar's lines reach the task's log"
    assert cluster.jobs == {} and list((tmp_path / "volume").glob("finetune-*")) == []

    words = {"method": "un2clip-anchored", "seed": 3, "device": "cpu", "checkpoints": ""}
    folders = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents}
    run_stage("finetune", params, **words, **folders, encoder=tmp_path / "alone")
    together, alone = (
        [row["diffusion_loss"] for row in json.loads((tmp_path / name / "history.json").read_text())]
        for name in ("encoder", "alone")
    )
    assert len(together) == 20 and together == pytest.approx(alone, rel=1e-5)


def test_a_cancelled_task_deletes_its_train_job(tiny: Any, tmp_path: Path) -> None:
    """SIGTERM while it waits: the TrainJob is gone, the task ends with a sentence, and not as if it had worked."""
    with running(Cluster()) as cluster:
        task = start(tiny, cluster, tmp_path, section(tiny, steps=6))
        began = time.monotonic()
        while not any(call.resource == "events" for call in cluster.calls):
            assert time.monotonic() - began < 120 and task.poll() is None
            time.sleep(0.1)
        task.send_signal(signal.SIGTERM)
        shown, _ = task.communicate(timeout=60)
    assert task.returncode != 0
    assert "cancelled: the TrainJob is deleted; the same run goes on from its newest checkpoint" in shown
    assert cluster.jobs == {} and [each["metadata"]["name"] for each in cluster.posted] == [NAME]
