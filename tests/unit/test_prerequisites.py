"""What a run needs before it costs money: each thing that is missing is named, all at once."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from kubernetes import client, config

from un2clip.cluster.prerequisites import SECRETS, check_prerequisites, examine
from un2clip.errors import UserError
from un2clip.stages import STAGES

NOTHING: dict[str, Any] = {
    "requires": [],
    "mounted": False,
    "volume": "",
    "space_gib": 0.0,
    "images": "",
    "benchmark_data": "",
    "benchmarks": ["zeroshot"],
    "accelerator_type": "nvidia.com/gpu",
    "accelerators": ["0", "0"],
    "requests": {f"{stage}_{name}": amount for stage in STAGES for name, amount in (("cpu", "1"), ("memory", "4Gi"))},
    "node_selector": {},
    "tolerations": [],
}


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path: Path) -> None:
    """A folder of its own, and none of the variables that a Secret or a pod would bring."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *(each for names in SECRETS.values() for each in names),
        "AWS_ENDPOINT_URL",
        "KUBERNETES_SERVICE_HOST",
    ):
        monkeypatch.delenv(name, raising=False)


def states(**names: Any) -> dict[str, str]:
    return {check.name: check.state for check in examine(**NOTHING | names)}


def test_a_laptop_lacks_nothing(capsys) -> None:
    """Where nothing is asked for, it passes, and looks at nothing but the disk."""
    check_prerequisites(**NOTHING)
    assert set(states()) == {"writable", "space"}
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "name", "said"),
    [
        ({"requires": ["mlflow"]}, "secret mlflow", "MLFLOW_TRACKING_URI not set; make the Secret that mlflow_secret"),
        ({"requires": ["hub"]}, "secret hub", "HF_TOKEN not set"),
        ({"requires": ["s3"]}, "secret s3", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY not set"),
        ({"volume": "mine"}, "volume", "mine is named, but this pipeline was compiled without a volume"),
        ({"space_gib": 1e9}, "space", "1e+09 GiB are needed"),
        ({"images": "data/photos"}, "images", "data/photos does not exist; without a volume a task sees no folder"),
        ({"images": "empty", "mounted": True}, "images", "empty has no *.tar; it is looked for on the volume"),
        ({"benchmark_data": "data"}, "benchmark_data", "data/zeroshot does not exist"),
    ],
)
def test_what_is_missing_is_said(names: dict[str, Any], name: str, said: str) -> None:
    """Each prerequisite that is not met ends the run with a sentence that names it and its mending."""
    Path("empty").mkdir()
    assert states(**names)[name] == "FAIL"
    with pytest.raises(UserError) as raised:
        check_prerequisites(**NOTHING | names)
    (line,) = str(raised.value).splitlines()[1:]
    assert line.startswith(f"{name}: ") and said in line


def test_everything_missing_is_said_at_once() -> None:
    """A run that lacks three things is refused once, with three lines, and not three times."""
    with pytest.raises(UserError) as raised:
        check_prerequisites(**NOTHING | {"requires": ["hub", "s3"], "images": "nowhere"})
    assert [line.split(":")[0] for line in str(raised.value).splitlines()[1:]] == ["secret hub", "secret s3", "images"]


def test_what_is_there_is_found(monkeypatch) -> None:
    """Secrets, tars in train/ and heldout/, and a benchmark's folder pass."""
    for folder in ("photos/train", "bench/zeroshot"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "00000.tar").touch()
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = states(requires=["hub"], images="photos", benchmark_data="bench", volume="claim", mounted=True)
    assert set(found) == {"secret hub", "writable", "space", "images", "benchmark_data"}
    assert set(found.values()) == {"ok"}


def test_an_unreachable_mlflow_ends_the_run(monkeypatch) -> None:
    """An address at which nothing answers is refused, although no word asked for it: each stage would stop there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow at .* cannot be used") as raised:
        check_prerequisites(**NOTHING)
    assert "password" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"requires": ["gpus"]}, "requires must be of mlflow, hub, s3, nodes; got 'gpus'"),
        ({"accelerators": ["one"]}, "a text of digits, got 'one'"),
    ],
)
def test_a_wrong_word_is_refused(names: dict[str, Any], said: str) -> None:
    """A word that is no prerequisite, and a number that is none, are refused by name."""
    with pytest.raises(UserError, match=said):
        check_prerequisites(**NOTHING | names)


#: A node of two cores, as it is left by what Kubernetes keeps for itself, with a GPU.
ALLOCATABLE = {"cpu": "1930m", "memory": "6Gi", "nvidia.com/gpu": "1"}


class Nodes(BaseHTTPRequestHandler):
    """A cluster of one node with one GPU, or a refusal to say."""

    def do_GET(self) -> None:
        node = {"metadata": {"name": "a"}, "spec": {}, "status": {"allocatable": ALLOCATABLE}}
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"kind": "NodeList", "apiVersion": "v1", "items": [node]}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def cluster(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A pod's surroundings: the API server's address, and a service account that leads there."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Nodes) as running:
        running.status = 200
        Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        account = client.Configuration(host=f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setattr(config, "load_incluster_config", lambda: client.Configuration.set_default(account))
        yield running
        client.Configuration.set_default(None)
        running.shutdown()


@pytest.mark.parametrize(
    ("count", "requires", "status", "state"),
    [
        ("1", ["nodes"], 200, "ok"),
        ("2", ["nodes"], 200, "FAIL"),
        ("2", [], 200, "warn"),  # a pool that grows from nothing may bring it
        ("2", ["nodes"], 403, "warn"),  # nobody knows, so the run is not refused
        ("0", ["nodes"], 200, "ok"),
    ],
)
def test_the_pool(cluster, count: str, requires: list[str], status: int, state: str | None) -> None:
    """A pool that cannot take the tasks ends the run where nodes are required, and warns where nobody can know."""
    cluster.status = status
    assert states(accelerators=["0", count], requires=requires).get("nodes") == state


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "amount", "said"), [("cpu", "2", "2 cpu asked for"), ("memory", "7Gi", "7.0 GiB of memory")]
)
def test_what_no_node_gives_is_said(cluster, stage: str, name: str, amount: str, said: str) -> None:
    """A stage that asks for more than any node gives would wait for ever: it is named, before anything starts."""
    requests = NOTHING["requests"] | {f"{stage}_{name}": amount}
    (check,) = [
        check for check in examine(**NOTHING | {"requires": ["nodes"], "requests": requests}) if check.name == "nodes"
    ]
    assert check.state == "FAIL" and check.message.startswith(f"{stage}: {said}")


def test_a_run_of_assistants_names_what_is_empty(tmp_path: Path) -> None:
    """Without a language model, or without the addresses of the encoders, nothing is started; folders are looked at."""
    named = {"language_seeds": [], "questions": ["pope"], "encoder_uri": "", "backbones_uri": "s3://there/backbones"}
    with pytest.raises(UserError) as refused:
        check_prerequisites(**NOTHING | {"named": named, "instructions": "data/llava"})
    for said in ("language_seeds: is empty", "submit with encoder_uri=...", "instructions: data/llava does not exist"):
        assert said in str(refused.value)
    assert "questions" not in str(refused.value) and "backbones_uri" not in str(refused.value)
    (tmp_path / "data/llava").mkdir(parents=True)
    (tmp_path / "data/llava/alignment.json").write_text("[]")
    full = {"language_seeds": [0], "encoder_uri": "s3://there/encoder"}
    assert states(named=full, instructions="data/llava")["instructions"] == "ok"


def test_a_wrong_quantity_is_refused(cluster) -> None:
    """What no pod's spec could hold ends the run by the parameter's name."""
    with pytest.raises(UserError, match="finetune_memory must be a quantity of Kubernetes"):
        check_prerequisites(**NOTHING | {"requests": NOTHING["requests"] | {"finetune_memory": "4GiB"}})
