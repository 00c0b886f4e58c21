"""The TrainJob that is asked for, and what becomes of it: the real SDK against a stub of the Kubernetes API."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import yaml
from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from kubernetes.client import Configuration

from tests.kubernetes_stub import NAMESPACE, PUBLIC, Cluster, Log, granted, running
from un2clip.cluster import trainjob
from un2clip.cluster.nodes import WITH_SECRETS, finetune_on_nodes, free
from un2clip.config import merge, read_params
from un2clip.errors import UserError

ROOT = Path(__file__).parents[2]
NAME = "finetune-7d3f"


class World:
    """A cluster, a client of it, a shared volume, and the arguments of a task that asks for two nodes."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.volume = cluster, folder, folder / "volume"
        self.client = TrainerClient(
            KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=Configuration(host=cluster.url))
        )
        self.volume.mkdir()
        for name in ("shards", "backbones", "latents"):
            (folder / "artifacts" / name).mkdir(parents=True)
            (folder / "artifacts" / name / "content").write_text(name)
        params = merge(read_params(ROOT / "params.yaml"), {"finetune": {"compute": {"processes": 8}}})
        self.params = params["finetune"]
        claim = {"name": "claim", "persistentVolumeClaim": {"claimName": "un2clip-shared"}}
        secret = {"name": "un2clip-mlflow", "secret": {"secretName": "un2clip-mlflow", "optional": True}}
        self.arguments: dict[str, Any] = {
            "client": self.client,
            "nodes": 2,
            "image": "registry.example/un2clip:1",
            "volume": str(self.volume),
            "secrets": "/run/secrets/un2clip",
            "shared_memory": "16Gi",
            "service_account": "un2clip-node",
            "timeout_s": 86400,
            "task": {  # as Kubeflow's driver fills dsl.TaskConfig
                "resources": {
                    "requests": {"cpu": "16", "memory": "200Gi"},
                    "limits": {"memory": "200Gi", "nvidia.com/gpu": "8", "example.com/none": "0"},
                },
                "volumes": [claim, secret],
                "volume_mounts": [
                    {"name": "claim", "mountPath": str(self.volume)},
                    {"name": "un2clip-mlflow", "mountPath": "/run/secrets/un2clip/mlflow_secret"},
                ],
                "node_selector": {"pool": "a100"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "affinity": None,
                "env": None,
            },
            "checkpoints": "checkpoints",
            "inputs": {name: str(folder / "artifacts" / name) for name in ("shards", "backbones", "latents")},
            "arguments": {"method": "un2clip", "seed": 3, "device": "auto"},
            "encoder": str(folder / "artifacts" / "encoder"),
        }

    def train(self, **changes: Any) -> None:
        finetune_on_nodes(self.params, **(self.arguments | changes))

    def succeed(self, job: dict[str, Any]) -> None:
        """Two nodes that run at once, log, write the encoder, and end."""
        name = job["metadata"]["name"]
        self.cluster.add_pod(name, 0, Log("step 1", "step 2"))
        self.cluster.add_pod(name, 1, Log("unseen"))
        (encoder := self.volume / name / "encoder").mkdir()
        (encoder / "open_clip_model.safetensors").write_text("weights")
        self.cluster.finish(name, "Complete")

    def fail(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        self.cluster.add_pod(name, 0, Log("step 1"), phase="Failed")
        self.cluster.add_pod(name, 1, Log("un2clip: out of memory"), phase="Failed")
        self.cluster.finish(name, "Failed")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("UN2CLIP_RUN", "7d3f")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    with running(Cluster()) as cluster:
        made = World(cluster, tmp_path)
        cluster.created = made.succeed  # type: ignore[method-assign]
        yield made


def test_the_posted_train_job(world: World) -> None:
    """All of the manifest: two nodes of eight processes, the stage's own command, volumes, placement, limits."""
    world.train()
    (job,) = world.cluster.posted
    at = world.volume / NAME
    labels = {"app.kubernetes.io/name": "un2clip", "un2clip/run": "7d3f"}
    amounts = {"cpu": "16", "memory": "200Gi", "nvidia.com/gpu": "8"}
    task = world.arguments["task"]
    assert job == {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "activeDeadlineSeconds": 86400,
            "runtimeRef": {"kind": "ClusterTrainingRuntime", "name": "torch-distributed"},
            "trainer": {
                "image": "registry.example/un2clip:1",
                "numNodes": 2,
                "resourcesPerNode": {"requests": amounts, "limits": amounts},
                "command": ["sh", "-c", WITH_SECRETS, "/run/secrets/un2clip"],
                "args": [
                    "torchrun",
                    "--nproc-per-node=8",
                    "-m",
                    "un2clip",
                    "finetune",
                    f"--params={at}/params.yaml",
                    "--method=un2clip",
                    "--seed=3",
                    "--device=auto",
                    f"--checkpoints={world.volume}/checkpoints",
                    f"--shards={at}/shards",
                    f"--backbones={at}/backbones",
                    f"--latents={at}/latents",
                    f"--encoder={at}/encoder",
                ],
                "env": [
                    {"name": "UN2CLIP_RUN", "value": "7d3f"},
                    {"name": "TQDM_POSITION", "value": "-1"},
                    {"name": "UN2CLIP_TRACKING", "value": "off"},
                ],
            },
            "runtimePatches": [
                {
                    "manager": "trainer.kubeflow.org/kubeflow-sdk",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [
                                    {
                                        "name": "node",
                                        "template": {
                                            "spec": {
                                                "template": {
                                                    "metadata": {"labels": labels},
                                                    "spec": {
                                                        "serviceAccountName": "un2clip-node",
                                                        "nodeSelector": {"pool": "a100"},
                                                        "tolerations": task["tolerations"],
                                                        "volumes": [
                                                            *task["volumes"],
                                                            {
                                                                "name": "dshm",
                                                                "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"},
                                                            },
                                                        ],
                                                        "containers": [
                                                            {
                                                                "name": "node",
                                                                "volumeMounts": [
                                                                    *task["volume_mounts"],
                                                                    {"name": "dshm", "mountPath": "/dev/shm"},
                                                                ],
                                                            }
                                                        ],
                                                    },
                                                }
                                            }
                                        },
                                    }
                                ]
                            }
                        }
                    },
                }
            ],
        },
    }
    assert "s3cret" not in str(job), "a password of the task must not be in an object that others may read"
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job, "every field is one of the API's"


def test_the_encoder_comes_back(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Inputs go to the volume, the first node's log to the task's, the encoder to the artifact; nothing stays."""
    seen = {}

    def created(job: dict[str, Any]) -> None:
        at = world.volume / NAME
        seen.update({path.name: (path / "content").read_text() for path in at.iterdir() if path.is_dir()})
        seen["params"] = yaml.safe_load((at / "params.yaml").read_text())
        world.succeed(job)

    world.cluster.created = created  # type: ignore[method-assign]
    world.train()
    inputs = ("shards", "backbones", "latents")
    assert seen == {**{name: name for name in inputs}, "params": {"finetune": world.params}}
    assert (world.folder / "artifacts/encoder/open_clip_model.safetensors").read_text() == "weights"
    shown = capfd.readouterr().out
    assert "step 1\nstep 2\n" in shown and "unseen" not in shown
    assert list(world.volume.iterdir()) == [] and world.cluster.jobs == {}


def test_the_log_comes_as_it_is_written(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """A line is printed while the job runs, and what a new connection repeats is not printed twice."""
    log, early = Log("one", ended=False), []

    def created(job: dict[str, Any]) -> None:
        world.cluster.add_pod(NAME, 0, log)
        Timer(0.5, broken).start()

    def broken() -> None:
        early.append(capfd.readouterr().out)
        log.ended.set()  # the connection ends, the container does not
        Timer(0.3, finished).start()

    def finished() -> None:
        log.lines.append("two")
        world.cluster.finish(NAME, "Complete")

    world.cluster.created = created  # type: ignore[method-assign]
    trainjob.run(job(), world.client, poll_seconds=0.05)
    assert early[0].splitlines()[-1] == "one"
    assert capfd.readouterr().out.splitlines() == ["two"]


def job(**changes: Any) -> trainjob.Job:
    given: dict[str, Any] = {"name": NAME, "labels": {}, "image": "i", "nodes": 2, "command": ["true"], "args": []}
    given |= {"env": {}, "resources": {"cpu": "1"}, "pod": {}, "volume_mounts": [], "timeout_s": 0}
    return trainjob.Job(**(given | changes))


def test_a_failure_is_told_and_cleaned_up(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """A failed job: one sentence, the other nodes' last lines, no TrainJob left, the volume kept for the next try."""
    world.cluster.created = world.fail  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"^TrainJob {NAME} failed; its log is above$"):
        world.train()
    assert "node-1: un2clip: out of memory" in capfd.readouterr().out
    assert world.cluster.jobs == {}
    assert (world.volume / NAME / "shards" / "content").is_file()
    assert not (world.folder / "artifacts/encoder").exists()


def test_a_second_try_replaces_the_first_ones_job(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """A TrainJob that a lost task left goes first, and its last pod before a new one; inputs are not copied again."""
    world.cluster.jobs[NAME] = {"metadata": {"name": NAME}}
    world.cluster.add_pod(NAME, 0, Log())
    world.cluster.add_pod("another", 0, Log())
    world.cluster.grace = 0.5
    kept = world.volume / NAME / "shards"
    kept.mkdir(parents=True)
    (kept / "content").write_text("from the first try")
    (world.volume / NAME / "backbones.partial").mkdir()
    seen = []

    def created(job: dict[str, Any]) -> None:
        seen.append(((kept / "content").read_text(), [*world.cluster.pods]))
        world.succeed(job)

    world.cluster.created = created  # type: ignore[method-assign]
    world.train()
    assert seen == [("from the first try", ["another-node-0-0-x"])]
    verbs = [call.verb for call in world.cluster.calls if call.resource == "trainjobs"]
    assert verbs[:2] == ["delete", "create"]
    assert "of a former try is there; it is replaced" in capfd.readouterr().out


def test_every_right_is_used(world: World) -> None:
    """The stub allows what pipelines/manifests grants. A try that replaces another's job and fails uses all of it.

    Beside the nodes, which `prerequisites` lists.
    """
    world.cluster.jobs[NAME] = {"metadata": {"name": NAME}}
    world.cluster.created = world.fail  # type: ignore[method-assign]
    with pytest.raises(UserError):
        world.train()
    asked = {call[:3] for call in world.cluster.calls}
    assert asked - PUBLIC == granted() - {("list", "", "nodes")}


QUOTA = 'trainjobs.trainer.kubeflow.org "x" is forbidden: exceeded quota: un2clip, requested: count/trainjobs=1'
ACCOUNT = (
    'trainjobs.trainer.kubeflow.org is forbidden: User "system:serviceaccount:team:default" cannot create resource '
    '"trainjobs" in API group "trainer.kubeflow.org" in the namespace "team"'
)


@pytest.mark.parametrize(
    ("where", "answer", "said"),
    [
        (
            ("create", "trainjobs"),
            (403, QUOTA),
            r"exceeded quota: un2clip, .*; ask for fewer nodes",
        ),
        (("create", "trainjobs"), (403, ACCOUNT), r"cannot create a TrainJob: .*:default.*; apply pipelines/manifests"),
        (("get", "clustertrainingruntimes"), (404, "404 page not found"), r"no training runtime torch-distributed; in"),
        (
            ("get", "trainingruntimes"),
            (403, "x is forbidden: no"),
            r"cannot read the runtime torch-.*; apply",
        ),
        (("create", "trainjobs"), (400, "spec.trainer is wrong"), r"^cannot create a TrainJob: spec.trainer is wrong$"),
        (("list", "pods"), (403, "pods is forbidden: no"), r"cannot follow the TrainJob: pods is forbidden.*manifests"),
        (("list", "events"), (403, "events is forbidden: no"), r"cannot follow the TrainJob: events is forbidden"),
    ],
)
def test_a_refusal_is_one_sentence(world: World, where: Any, answer: tuple[int, str], said: str) -> None:
    """Quota, service account, missing runtime: what the API server said, and what helps; no job is left."""
    world.cluster.refusals[where] = answer
    with pytest.raises(UserError, match=said) as refused:
        world.train()
    assert "\n" not in str(refused.value)
    assert world.cluster.jobs == {}


def test_a_refused_node_ends_the_job(world: World) -> None:
    """A quota that refuses the second node's pod is a warning of the cluster's; the first node would wait for ever."""

    def created(job: dict[str, Any]) -> None:
        world.cluster.add_pod(NAME, 0, Log("waiting", ended=False))
        message = 'pods "x" is forbidden: exceeded quota: un2clip, requested: requests.nvidia.com/gpu=8'
        world.cluster.warn(f"{NAME}-node-0", "FailedCreate", message)

    world.cluster.created = created  # type: ignore[method-assign]
    world.cluster.warn(f"{NAME}-node-0", "FailedCreate", "of the try before", at="2020-01-01T00:00:00Z")
    with pytest.raises(UserError, match="^the cluster refused a node: pods .*exceeded quota.*ResourceQuota of team$"):
        world.train()
    assert world.cluster.jobs == {}


def test_warnings_are_told_once(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """No room for a pod yet is said once, with the cluster's reason, and waited for; others' events are not ours."""

    def created(job: dict[str, Any]) -> None:
        world.cluster.warn(f"{NAME}-node-0-0-x", "FailedScheduling", "0/3 nodes: insufficient nvidia.com/gpu")
        world.cluster.warn("another", "FailedCreate", "not ours")
        Timer(0.6, lambda: world.cluster.finish(NAME, "Complete")).start()

    world.cluster.created = created  # type: ignore[method-assign]
    trainjob.run(job(), world.client, poll_seconds=0.05)
    said = capfd.readouterr().err
    assert said.count("FailedScheduling: 0/3 nodes: insufficient nvidia.com/gpu") == 1 and "not ours" not in said


def test_an_answer_that_fails_once_is_not_the_end(world: World) -> None:
    """An API server that is away for a moment does not cost the training."""

    def created(job: dict[str, Any]) -> None:
        world.cluster.refusals[("get", "trainjobs")] = (500, "etcd leader changed")
        Timer(0.3, world.cluster.refusals.clear).start()
        Timer(0.5, lambda: world.cluster.finish(NAME, "Complete")).start()

    world.cluster.created = created  # type: ignore[method-assign]
    trainjob.run(job(), world.client, poll_seconds=0.05)
    asked = [call for call in world.cluster.calls if (call.verb, call.resource) == ("get", "trainjobs")]
    assert len(asked) > 3


def test_the_last_task_frees_what_a_killed_one_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own TrainJob and folder go; another run's, and the checkpoints, stay; again, there is nothing to do."""
    for name in (NAME, "finetune-other"):
        world.cluster.jobs[name] = {"metadata": {"name": name}}
        (world.volume / name).mkdir()
    (world.volume / "checkpoints").mkdir()
    free(world.client, str(world.volume))
    free(world.client, str(world.volume))
    assert set(world.cluster.jobs) == {"finetune-other"}
    assert {path.name for path in world.volume.iterdir()} == {"finetune-other", "checkpoints"}
    shown = capsys.readouterr()
    assert shown.out == f"TrainJob {NAME} was still there; it is deleted\n" and shown.err == ""


def test_a_job_that_somebody_deleted_is_said(world: World) -> None:
    """A TrainJob that is gone while it is waited for ends the task with a sentence."""
    world.cluster.created = lambda made: world.cluster.jobs.clear()  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match=f"^somebody deleted TrainJob {NAME}$"):
        trainjob.run(job(), world.client, poll_seconds=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"nodes": 3}, "finetune.batch_size must be a multiple of the 24 processes on 3 nodes, got 64"),
        ({"volume": "/elsewhere"}, "no volume is mounted at /elsewhere; compile with a volume"),
        ({"gpus": "4"}, "compute.processes is 8 and each node has 4 accelerators; make it 0 or 4"),
    ],
)
def test_what_does_not_fit_is_said_before(world: World, changes: dict[str, Any], said: str) -> None:
    """Numbers that would fail on the nodes are refused before anything is copied or asked for."""
    task = copy.deepcopy(world.arguments["task"])
    task["resources"]["limits"]["nvidia.com/gpu"] = changes.pop("gpus", "8")
    with pytest.raises(UserError, match=said):
        world.train(task=task, **changes)
    assert world.cluster.calls[1:] == [] and list(world.volume.iterdir()) == []


def test_a_volume_that_cannot_be_written_is_said(world: World) -> None:
    """The message names the folder and what to look at."""
    world.volume.rmdir()
    world.volume.write_text("a file, where a folder should be")
    with pytest.raises(UserError, match=r"cannot write to the shared volume .*; it must be writable"):
        world.train()


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither around us nor in a kube config: one sentence."""
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(UserError, match="^no Kubernetes cluster to train on"):
        trainjob.connect()


def test_mounted_secrets_become_variables(tmp_path: Path) -> None:
    """The shell words before the command make a variable of every key of every Secret; no Secret is no error."""
    for folder, key, value in (("a", "TOKEN", "it's $HOME\nof two lines"), ("b", "odd.name", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / key).write_text(value)
    code = (
        "import json, os, sys; print(json.dumps([os.environ.get(key) for key in ('TOKEN', 'odd.name')] + sys.argv[1:]))"
    )
    for secrets, expected in ((tmp_path, ["it's $HOME\nof two lines", "x"]), (tmp_path / "none", [None, None])):
        words = ["sh", "-c", WITH_SECRETS, str(secrets), sys.executable, "-c", code, "--a=b c"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env={})
        assert json.loads(done.stdout) == [*expected, "--a=b c"]


def test_processes_follow_the_accelerators(world: World) -> None:
    """`processes: 0` is one an accelerator, as on one machine."""
    world.params = merge(world.params, {"compute": {"processes": 0}})
    world.train()
    assert world.cluster.posted[0]["spec"]["trainer"]["args"][1] == "--nproc-per-node=8"
