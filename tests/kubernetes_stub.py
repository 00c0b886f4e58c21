"""The part of a Kubernetes API server that a TrainJob needs, in memory, for the real clients to talk to."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

NAMESPACE = "team"
TRAINER = "trainer.kubeflow.org"
RIGHTS = Path(__file__).parents[1] / "pipelines" / "manifests" / "base" / "rights.yaml"


def granted() -> set[tuple[str, str, str]]:
    """(verb, group, resource) of every rule in the project's own manifests."""
    rules = [rule for each in yaml.safe_load_all(RIGHTS.read_text()) for rule in each.get("rules", [])]
    return {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


#: The version of Kubeflow Trainer, which its own installation lets everybody read.
PUBLIC = {("get", "", "configmaps")}

#: As Kubeflow Trainer installs it: one job `node` of containers `node`, and torchrun's variables.
RUNTIME = yaml.safe_load("""
apiVersion: trainer.kubeflow.org/v1alpha1
kind: ClusterTrainingRuntime
metadata: {name: torch-distributed, labels: {trainer.kubeflow.org/framework: torch}}
spec:
  mlPolicy: {numNodes: 1, torch: {}}
  template:
    spec:
      replicatedJobs:
        - name: node
          template:
            metadata: {labels: {trainer.kubeflow.org/trainjob-ancestor-step: trainer}}
            spec: {template: {spec: {containers: [{name: node, image: pytorch/pytorch}]}}}
""")


class Call(NamedTuple):
    """One request, in the words of a Role."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    selector: str


class Log:
    """Lines of a container, which may still be running."""

    def __init__(self, *lines: str, ended: bool = True) -> None:
        self.lines, self.ended = list(lines), Event()
        if ended:
            self.ended.set()

    def follow(self) -> Iterator[str]:
        """Every line, and those that come, until the container has ended."""
        sent = 0
        while True:
            last = self.ended.is_set()
            yield from self.lines[sent : (sent := len(self.lines))]
            if last:
                return
            time.sleep(0.02)


class Refused(Exception):
    """An answer other than 200: status and message."""


class Cluster(ThreadingHTTPServer):
    """Jobs, pods, logs and events, and what was asked. It allows what the project's own Role allows, and no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.calls: list[Call] = []
        self.posted: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, Log] = {}
        self.events: list[dict[str, Any]] = []
        self.runtimes = {"torch-distributed": RUNTIME}
        self.grace = 0.0  # seconds that pods live on when their job is deleted
        self.rights = granted() | PUBLIC
        self.refusals: dict[tuple[str, str], tuple[int, str]] = {}  # (verb, resource) -> status, message

    def created(self, job: dict[str, Any]) -> None:
        """What the controllers do with a new TrainJob; a test says it."""

    def add_pod(self, job: str, node: int, log: Log, phase: str = "Running") -> None:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(node),
        }
        name = f"{job}-node-0-{node}-x"
        containers = [{"name": "node", "resources": {"limits": {"cpu": "1"}}}]
        self.pods[name] = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": containers},
            "status": {"phase": phase},
        }
        self.logs[name] = log

    def finish(self, job: str, condition: str) -> None:
        for name, pod in self.pods.items():
            self.logs[name].ended.set()
            if pod["status"]["phase"] == "Running":
                pod["status"]["phase"] = "Succeeded"
        self.jobs[job]["status"] = {"conditions": [condition_of(condition)]}

    def warn(self, about: str, reason: str, message: str, at: str | None = None) -> None:
        self.events.append(
            {
                "metadata": {"name": f"event-{len(self.events)}", "namespace": NAMESPACE},
                "involvedObject": {"name": about},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": at or now(),
            }
        )

    def remove_pods(self, job: str) -> None:
        for pod in [each for each in self.pods if each.startswith(f"{job}-node-")]:
            del self.pods[pod]
            self.logs[pod].ended.set()

    def answer(self, call: Call, body: dict[str, Any]) -> Any:
        """The answer's content; a list of texts is sent line by line."""
        if refusal := self.refusals.get((call.verb, call.resource)):
            raise Refused(*refusal)
        if call[:3] not in self.rights:
            raise Refused(403, f'{call.resource} is forbidden: no right to {call.verb} in the API group "{call.group}"')
        match call.resource, call.verb:
            case "configmaps", "get":
                return {"data": {"kubeflow_trainer_version": "v2.3.0"}}
            case "trainingruntimes", "get":
                raise Refused(404, f'trainingruntimes.{TRAINER} "{call.name}" not found')
            case "clustertrainingruntimes", "get":
                return self.found(self.runtimes, call)
            case "trainjobs", "get":
                return self.found(self.jobs, call)
            case "trainjobs", "create":
                self.posted.append(json.loads(json.dumps(body)))
                body["metadata"] |= {"namespace": call.namespace, "creationTimestamp": now()}
                name = body["metadata"]["name"]
                if name in self.jobs:
                    raise Refused(409, f'trainjobs.{TRAINER} "{name}" already exists')
                self.jobs[name] = body
                self.created(body)
                return body
            case "trainjobs", "delete":
                gone = self.found(self.jobs, call)
                del self.jobs[call.name]
                Timer(self.grace, self.remove_pods, [call.name]).start()
                return gone
            case "pods", "list":
                label, _, wanted = call.selector.partition(",")[0].partition("=")
                items = [pod for pod in self.pods.values() if pod["metadata"]["labels"][label] == wanted]
                return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
            case "pods/log", "get":
                return self.logs[call.name].follow()
            case "events", "list":
                return {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self.events}
        raise Refused(404, "the server could not find the requested resource")

    def found(self, known: dict[str, dict[str, Any]], call: Call) -> dict[str, Any]:
        if call.name not in known:
            raise Refused(404, f'{call.resource}.{call.group} "{call.name}" not found')
        return known[call.name]


class Handler(BaseHTTPRequestHandler):
    """One request: remember it, answer it."""

    server: Cluster
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        call = parse(self.command, self.path)
        self.server.calls.append(call)
        try:
            content, status = self.server.answer(call, body), 200
        except Refused as refused:
            status, message = refused.args
            content = {"kind": "Status", "status": "Failure", "code": status, "message": message}
        self.send_response(status)
        if isinstance(content, dict):
            data = json.dumps(content).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in content:
            self.send_chunk(line.encode() + b"\n")
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    do_GET = do_POST = do_DELETE = handle_request

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


def parse(method: str, path: str) -> Call:
    """A request in the words of a Role: verb, group, resource, namespace, name."""
    parts = urlsplit(path).path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" and len(rest) > 2 else ("", rest)
    resource, name, *below = [*rest, ""] if len(rest) < 2 else rest
    query = parse_qs(urlsplit(path).query)
    verb = {"POST": "create", "DELETE": "delete"}.get(method) or ("get" if name else "list")
    return Call(verb, group, "/".join([resource, *below]), namespace, name, query.get("labelSelector", [""])[0])


def condition_of(kind: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "x", "message": "x", "lastTransitionTime": now()}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def kube_config(cluster: Cluster, path: Path) -> Path:
    """A kube config for this cluster, for a process of its own."""
    context = {"cluster": "stub", "user": "stub", "namespace": NAMESPACE}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "stub", "cluster": {"server": cluster.url}}],
        "users": [{"name": "stub", "user": {}}],
        "contexts": [{"name": "stub", "context": context}],
        "current-context": "stub",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    with cluster:
        Thread(target=cluster.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield cluster
        cluster.shutdown()
