"""Whether a node could take a task: by hand-made clusters, and by the API's own answers."""

import json
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration, CoreV1Api

from un2clip.cluster.scheduling import Node, Pool, Unanswered, quantity, read_nodes, shortage
from un2clip.errors import UserError

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(count: str = "8", *, pool: str = "gpu", taints: tuple[Any, ...] = (), cordoned: bool = False) -> Node:
    allocatable = {"cpu": "63900m", "memory": "8058912Ki", "nvidia.com/gpu": count}
    return Node(name="a", labels={"pool": pool}, taints=taints, allocatable=allocatable, cordoned=cordoned)


def wanted(count: int, selector: dict[str, str] | None = None, *tolerations: dict[str, str]) -> Pool:
    of_gpus = {"nvidia.com/gpu": Decimal(count)} if count else {}
    return Pool(wanted=of_gpus, selector=selector or {}, tolerations=tolerations)


def plain(cpu: str = "1", memory: str = "4Gi") -> Pool:
    return Pool(wanted={"cpu": quantity(cpu, "cpu"), "memory": quantity(memory, "memory")})


def two_cores(cpu: str = "1930m", memory: str = "7Gi") -> Node:
    return Node(name="b", labels={}, taints=(), allocatable={"cpu": cpu, "memory": memory})


@pytest.mark.parametrize(
    ("pool", "nodes", "lacks"),
    [
        (wanted(8), [node()], ""),
        (wanted(1), [node("0"), node("1")], ""),
        (wanted(2), [node("1"), node("1")], "2 nvidia.com/gpu asked for, and none of 2 nodes gives more than 1 nv"),
        (wanted(1), [Node(name="a", labels={}, taints=(), allocatable={})], "0 nvidia.com/gpu; lower it, or look"),
        (plain(), [two_cores()], ""),
        (plain("1930m"), [two_cores()], ""),
        (plain("2"), [two_cores()], "2 cpu asked for, and none of 1 nodes gives more than 1.93 cpu; lower it"),
        (plain("2"), [two_cores(), node()], ""),
        (plain("1", "8Gi"), [two_cores()], "8.0 GiB of memory asked for, and none of 1 nodes gives more than 7.0 GiB"),
        (plain("2", "5Gi"), [two_cores(), two_cores("4", "4Gi")], "2 cpu, 5.0 GiB of memory are asked for, and none"),
        (wanted(1, {"pool": "gpu"}), [node(pool="cpu"), node(pool="gpu")], ""),
        (wanted(1, {"pool": "gpus"}), [node()], "none of 1 nodes has the labels pool=gpus"),
        (wanted(0, {"pool": "gpus"}), [], "none of 0 nodes has the labels pool=gpus"),
        (wanted(1), [node(cordoned=True)], "all 1 nodes are cordoned"),
        (wanted(1), [node(taints=(GPU_TAINT,))], "that no toleration allows: nvidia.com/gpu=present:NoSchedule"),
        (wanted(1), [node(taints=(GPU_TAINT | {"effect": "PreferNoSchedule"},))], ""),
        (wanted(1, None, {"key": "nvidia.com/gpu", "operator": "Exists"}), [node(taints=(GPU_TAINT,))], ""),
        (wanted(1, None, {"operator": "Exists"}), [node(taints=(GPU_TAINT,))], ""),
        (wanted(1, None, {"key": "nvidia.com/gpu", "value": "present"}), [node(taints=(GPU_TAINT,))], ""),
        (wanted(1, None, {"key": "nvidia.com/gpu", "value": "no"}), [node(taints=(GPU_TAINT,))], "no toleration"),
        (wanted(1, None, {"operator": "Exists", "effect": "NoExecute"}), [node(taints=(GPU_TAINT,))], "no toleration"),
        (wanted(1, None, {"operator": "Exists", "key": "other"}), [node(taints=(GPU_TAINT,))], "no toleration allows"),
    ],
)  # fmt: skip
def test_what_a_pool_lacks(pool: Pool, nodes: list[Node], lacks: str) -> None:
    """Labels, taints, cordons and counts decide as Kubernetes' scheduler does; what is missing is said."""
    said = shortage(pool, nodes)
    assert lacks in said and bool(said) is bool(lacks)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("500m", Decimal("0.5")), ("4Gi", 2**32), ("8058912Ki", 8058912 * 1024), ("1e3", 1000)],
)
def test_quantities_are_kubernetes_own(text: str, number: Any) -> None:
    """Cores, bytes and counts are read as Kubernetes writes them; what is none is named."""
    assert quantity(text, "finetune_memory") == number


@pytest.mark.parametrize("text", ["two", "4GiB", "", "4 Gi", "-1", "NaN"])
def test_what_is_no_quantity_is_named(text: str) -> None:
    """A mistake is said with its parameter: the pod's spec would only be refused."""
    with pytest.raises(UserError, match="^finetune_memory must be a quantity of Kubernetes"):
        quantity(text, "finetune_memory")


class Handler(BaseHTTPRequestHandler):
    """Answers GET /api/v1/nodes with what the server was given."""

    def do_GET(self) -> None:
        status, content = self.server.answer if self.path == "/api/v1/nodes" else (404, {})  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def api(server: ThreadingHTTPServer) -> CoreV1Api:
    return CoreV1Api(ApiClient(Configuration(host=f"http://127.0.0.1:{server.server_port}")))


def test_nodes_are_read_as_the_api_gives_them(server) -> None:
    """Labels, taints, allocatable and cordon come from a NodeList; a node with none of them is one too."""
    status = {"allocatable": {"nvidia.com/gpu": "4"}}
    spec = {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}], "unschedulable": True}
    items = [
        {"metadata": {"name": "a", "labels": {"pool": "gpu"}}, "spec": spec, "status": status},
        {"metadata": {"name": "b"}, "spec": {}, "status": {}},
    ]
    server.answer = (200, {"kind": "NodeList", "apiVersion": "v1", "items": items})
    taint = {"key": "nvidia.com/gpu", "value": "", "effect": "NoSchedule"}
    assert read_nodes(api(server)) == [
        Node(name="a", labels={"pool": "gpu"}, taints=[taint], allocatable={"nvidia.com/gpu": "4"}, cordoned=True),
        Node(name="b", labels={}, taints=[], allocatable={}),
    ]


def test_a_refusal_is_no_answer(server) -> None:
    """A service account that may not list nodes, and a server at fault, are told apart from an empty cluster."""
    server.answer = (403, {"kind": "Status", "message": "nodes is forbidden"})
    with pytest.raises(Unanswered, match="^this service account may not list nodes$"):
        read_nodes(api(server))
    server.answer = (500, {})
    with pytest.raises(Unanswered, match="Internal Server Error"):
        read_nodes(api(server))


def test_outside_of_a_cluster_is_no_answer(monkeypatch) -> None:
    """Without a service account around, that is what is said, and nothing is guessed."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Unanswered, match="ConfigException"):
        read_nodes()
