"""`kfp run submit pipelines/un2clip.yaml`, and the stock words, against the real requests of the pipelines API."""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[2]
PACKAGE = "pipelines/un2clip.yaml"
RUN = {"run_id": "run-1", "display_name": "un2clip", "state": "PENDING", "created_at": "2026-01-02T03:04:05Z"}
#: The way through the Kubernetes API, which kfp takes with a kube config.
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"


class Request(NamedTuple):
    """One request that the server got."""

    method: str
    path: str
    body: dict[str, Any]
    authorization: str | None
    query: dict[str, list[str]]


class Server(ThreadingHTTPServer):
    """Answers as the API server does for one experiment and one run, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Request] = []
        self.states: list[dict[str, Any]] = []  # of the run, one for each time that it is asked for; the last stays
        self.url = f"http://127.0.0.1:{self.server_port}"

    def bodies(self, end: str) -> list[dict[str, Any]]:
        return [each.body for each in self.requests if each.method == "POST" and each.path.endswith(end)]


class Handler(BaseHTTPRequestHandler):
    """One request: remember it, answer what the client needs to go on."""

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        server: Server = self.server  # type: ignore[assignment]
        path, query = urlsplit(self.path).path.removeprefix(PROXY), parse_qs(urlsplit(self.path).query)
        server.requests.append(Request(self.command, path, body, self.headers.get("Authorization"), query))
        run = {**RUN, "experiment_id": "exp-1"}
        if server.states and (self.command, path) == ("GET", "/apis/v2beta1/runs/run-1"):
            run |= server.states.pop(0) if len(server.states) > 1 else server.states[0]
        known = {
            ("GET", "/apis/v2beta1/healthz"): {"multi_user": False},
            ("GET", "/apis/v2beta1/experiments"): {},
            ("POST", "/apis/v2beta1/experiments"): {"experiment_id": "exp-1", **body},
            ("POST", "/apis/v2beta1/runs"): run,
            ("POST", "/apis/v2beta1/recurringruns"): {
                "recurring_run_id": "every-1",
                "created_at": RUN["created_at"],
                **body,
            },
            ("GET", "/apis/v2beta1/runs/run-1"): run,
        }
        reply = known.get((self.command, path)) if run["state"] != "AWAY" else None
        self.send_response(404 if reply is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply or {}).encode())

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def call(words: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command from the root, with a home of its own, so that no one's kube config or endpoint is found."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KFP_", "KF_", "KUBE", "REQUESTS_", "SSL_"))  # as on a machine that never saw a cluster
    }
    clean |= {"HOME": str(home), "PATH": f"{ROOT / 'bin'}{os.pathsep}{clean['PATH']}"} | environment
    return subprocess.run(words, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120, check=False)


def stock() -> str:
    """The stock command line, which pip installs beside the interpreter."""
    return str(Path(sys.executable).with_name("kfp"))


def check_run(server: Server, parameters: dict[str, Any]) -> None:
    """One run was created in the experiment, of both documents of the compiled YAML, with these parameters."""
    (run,) = server.bodies("/runs")
    spec, platform = yaml.safe_load_all((ROOT / PACKAGE).read_text())
    assert run["experiment_id"] == "exp-1"
    assert run["pipeline_spec"]["pipeline_spec"] == spec
    assert run["pipeline_spec"]["platform_spec"] == platform
    assert run["runtime_config"]["parameters"] == parameters


def test_exactly_the_promised_words(server: Server, tmp_path: Path) -> None:
    """`kfp run submit pipelines/un2clip.yaml seed=3` makes the experiment un2clip and a run in it."""
    done = call(["kfp", "run", "submit", PACKAGE, "seed=3"], tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert [each["display_name"] for each in server.bodies("/experiments")] == ["un2clip"]
    check_run(server, {"seed": 3})
    assert "deprecated" not in done.stderr


def test_without_arguments(server: Server, tmp_path: Path) -> None:
    """The bare words, with the other variable that kfp itself knows, submit the compiled defaults."""
    done = call(["kfp", "run", "submit", PACKAGE], tmp_path, KF_PIPELINES_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    check_run(server, {})


def test_stock_words(server: Server, tmp_path: Path) -> None:
    """The documented stock form works with the stock command line: same experiment, same run."""
    words = [stock(), "run", "create", "-e", "un2clip", "-f", PACKAGE, "seed=3"]
    done = call(words, tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert [each["display_name"] for each in server.bodies("/experiments")] == ["un2clip"]
    check_run(server, {"seed": 3})


def test_stock_words_pass_through_ours(server: Server, tmp_path: Path) -> None:
    """The stock form works through bin/kfp as well."""
    words = ["kfp", "run", "create", "-e", "mine", "-f", PACKAGE, "seed=3"]
    done = call(words, tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert [each["display_name"] for each in server.bodies("/experiments")] == ["mine"]
    check_run(server, {"seed": 3})


def test_options_keep_working(server: Server, tmp_path: Path) -> None:
    """The user's own options count, before the words and after them, beside values of every type."""
    arguments = ["accelerator_limit=8", "method=un2clip", 'node_selector={"pool": "a"}', 'benchmarks=["zeroshot"]']
    words = ["kfp", "--endpoint", server.url, "--output", "json", "run", "submit", "-e", "mine", "-r", "try", PACKAGE]
    done = call([*words, *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each["display_name"] for each in server.bodies("/experiments")] == ["mine"]
    assert server.bodies("/runs")[0]["display_name"] == "try"
    check_run(
        server,
        {
            "accelerator_limit": "8",  # declared as a text, and the server refuses a number
            "method": "un2clip",
            "node_selector": {"pool": "a"},
            "benchmarks": ["zeroshot"],
        },
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=abc"], "seed must be a whole number; got 'abc'"),
        (["seed=3.7"], "seed must be a whole number; got '3.7'"),
        (["seed="], "seed must be a whole number; got ''"),
        (["benchmarks=mmvp_vlm"], "benchmarks must be a list"),
        (["finetune_params={steps:5}"], "finetune_params must be a mapping"),
        (['finetune_params={"training":{"steps":5}}'], "finetune_params must be the whole section; it lacks anchors"),
        (["-f", PACKAGE, "seed=abc"], "seed must be a whole number"),
        (["-f", PACKAGE, "sead=3"], "unknown parameter sead"),
    ],
)
def test_a_wrong_value_is_not_sent(server: Server, tmp_path: Path, words: list[str], said: str) -> None:
    """What a task would stumble over is one line, in our form and in the stock one, and the server hears nothing."""
    ours = [] if "-f" in words else [PACKAGE]
    done = call(["kfp", "run", "submit", *ours, *words], tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 1 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert server.requests == []


@pytest.fixture
def private(server: Server, tmp_path: Path) -> Path:
    """The server behind TLS, with a certificate that no one but the file's owner trusts."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    start = datetime.now(UTC) - timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    file = tmp_path / "ca.pem"
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    return file


@pytest.mark.parametrize("by", ["--ca-file", "KFP_CA_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_ones_own(server: Server, private: Path, tmp_path: Path, by: str) -> None:
    """A server of a private authority is trusted by the option, and by the variables that other programs read."""
    words, environment = ([by, str(private)], {}) if by.startswith("--") else ([], {by: str(private)})
    done = call(["kfp", *words, "run", "submit", PACKAGE], tmp_path, KFP_ENDPOINT=server.url, **environment)
    assert done.returncode == 0, done.stderr
    check_run(server, {})


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    """A variable that names no file is one line, and not a trace of the network's code."""
    environment = {"KFP_ENDPOINT": "https://127.0.0.1:9", "SSL_CERT_FILE": str(tmp_path / "none.pem")}
    done = call(["kfp", "run", "submit", PACKAGE], tmp_path, **environment)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "SSL_CERT_FILE must name a file of certificates" in done.stderr


def test_token_is_sent_and_not_shown(server: Server, tmp_path: Path) -> None:
    """A token from KFP_EXISTING_TOKEN goes with every request and appears in no output."""
    secret = "s3cret-token"
    done = call(["kfp", "run", "submit", PACKAGE], tmp_path, KFP_ENDPOINT=server.url, KFP_EXISTING_TOKEN=secret)
    assert done.returncode == 0, done.stderr
    assert {each.authorization for each in server.requests} == {f"Bearer {secret}"}
    assert secret not in done.stdout + done.stderr


def test_namespace(server: Server, tmp_path: Path) -> None:
    """A team's namespace, by kfp's own option or variable, is where the experiment is looked for and made."""
    for words, environment in ((["-n", "team"], {}), ([], {"KFP_NAMESPACE": "team"})):
        server.requests.clear()
        done = call(["kfp", *words, "run", "submit", PACKAGE], tmp_path, KFP_ENDPOINT=server.url, **environment)
        assert done.returncode == 0, done.stderr
        (asked,) = [each.query for each in server.requests if each.path.endswith("/experiments") and each.query]
        assert asked["namespace"] == ["team"]
        assert [each["namespace"] for each in server.bodies("/experiments")] == ["team"]


def test_token_of_a_pod(server: Server, tmp_path: Path) -> None:
    """The token that Kubernetes puts into a pod's file is used with an endpoint too; a token that is given wins."""
    (tmp_path / "token").write_text("from-the-pod\n")
    named = {"KFP_ENDPOINT": server.url, "KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "token")}
    assert call(["kfp", "run", "submit", PACKAGE], tmp_path, **named).returncode == 0
    assert {each.authorization for each in server.requests} == {"Bearer from-the-pod"}
    server.requests.clear()
    assert call(["kfp", "run", "submit", PACKAGE], tmp_path, **named, KFP_EXISTING_TOKEN="mine").returncode == 0
    assert {each.authorization for each in server.requests} == {"Bearer mine"}
    named["KF_PIPELINES_SA_TOKEN_PATH"] = str(tmp_path / "none")
    done = call(["kfp", "run", "submit", PACKAGE], tmp_path, **named)
    assert done.returncode == 1 and "cannot read the token at" in done.stderr


def test_token_of_a_kube_config(server: Server, tmp_path: Path) -> None:
    """Without an endpoint the kube config's server and token are used."""
    config = {
        "clusters": [{"name": "stub", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": "from-the-kube-config"}}],
        "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me"}}],
        "current-context": "stub",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    done = call(["kfp", "run", "submit", PACKAGE], tmp_path, KUBECONFIG=str(tmp_path / "config"))
    assert done.returncode == 0, done.stderr
    assert {each.authorization for each in server.requests} == {"Bearer from-the-kube-config"}
    check_run(server, {})


def tasks(**states: str) -> dict[str, Any]:
    """A run's state and its tasks' as the server says them, with those of its own among them."""
    names = {name.replace("_", "-"): state for name, state in states.items() if name != "run"}
    details = [
        {"task_id": f"{name}{end}", "display_name": f"{name}{end}", "state": state}
        for name, state in names.items()
        for end in ("", "-driver")
    ]
    for each in details:
        if each["state"] == "FAILED":
            each["error"] = {"code": 2, "message": "exit status 1"}
    return {"state": states["run"], "run_details": {"task_details": details}}


WATCHED = [
    {"state": "PENDING"},
    tasks(run="RUNNING", shapes="RUNNING"),
    tasks(run="RUNNING", shapes="RUNNING"),
    {"state": "AWAY"},
    tasks(run="RUNNING", shapes="SUCCEEDED", diffusion_loss="PENDING"),
]


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        (tasks(run="SUCCEEDED", shapes="SUCCEEDED", diffusion_loss="SUCCEEDED"), 0, ["diffusion-loss SUCCEEDED"]),
        (tasks(run="FAILED", shapes="SUCCEEDED", diffusion_loss="FAILED"), 1, ["diffusion-loss FAILED: exit status 1"]),
        (tasks(run="CANCELED", shapes="SUCCEEDED"), 1, []),
    ],
)
def test_watch(server: Server, tmp_path: Path, last: dict[str, Any], code: int, said: list[str]) -> None:
    """--watch prints each change of a task's state once, outlives a failing answer, and ends as the run does."""
    server.states = [*WATCHED, last]
    environment = {"KFP_ENDPOINT": server.url, "KFP_WATCH_SECONDS": "0.05"}
    done = call(["kfp", "run", "submit", PACKAGE, "--watch"], tmp_path, **environment)
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    changes = [" ".join(line.split()[1:]) for line in lines if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert changes == ["shapes RUNNING", "shapes SUCCEEDED", "diffusion-loss PENDING", *said]
    assert lines[-1] == f"run run-1: {last['state']}"


def node(name: str, state: str = "SUCCEEDED", *children: str, at: str = "") -> dict[str, Any]:
    """One of Argo's nodes as Kubeflow lists it."""
    below = [{"pod_name": child} for child in children]
    names = {"task_id": f"id of {at or name}", "pod_name": at or name, "display_name": name}
    return names | {"state": state, "child_tasks": below}


#: A run of two benchmarks on Kubeflow 2.17, whose own retries make two nodes of each.
REAL = [
    node("root"),
    node("root-driver"),
    node("root-driver(0)"),
    node("exit-handler-1"),
    node("exit-handler-1(0)"),
    node("prerequisites-driver"),
    node("prerequisites-driver(0)"),
    node("prerequisites"),
    node("prerequisites(0)"),
    node("executor", at="x"),
    node("executor(0)", "FAILED", at="x0"),
    node("executor(1)", at="x1"),
    node("for-loop-2"),
    node("for-loop-2-driver(0)"),
    node("iteration-iterations(0:0)", "SUCCEEDED", "i00", at="i0"),
    node("iteration-iterations(0:0)(0)", "SUCCEEDED", "e0", at="i00"),
    node("iteration-iterations(1:1)", "SUCCEEDED", "i10", at="i1"),
    node("iteration-iterations(1:1)(0)", "SUCCEEDED", "d1", at="i10"),
    node("evaluate-driver(0)", "SUCCEEDED", "e1", at="d1"),
    node("evaluate", "SUCCEEDED", at="e0"),
    node("evaluate", "FAILED", "c", at="e1"),
    node("compare-driver", "SUCCEEDED", "compare", at="c"),  # what waits for the loop is below its last turn, in Argo
    node("compare", "SKIPPED"),
]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [([], ["mmvp_vlm", "zeroshot"]), (['benchmarks=["segmentation"]'], ["segmentation", "1"])],
)
def test_watch_shows_only_the_pipelines_tasks(server: Server, tmp_path: Path, arguments, names: list[str]) -> None:
    """Attempts, drivers, executors and loops are left out, and an evaluation has its benchmark's name."""
    last = {"state": "FAILED", "run_details": {"task_details": REAL}}
    if arguments:
        last["runtime_config"] = {"parameters": {"benchmarks": ["segmentation"]}}
    else:
        last["pipeline_spec"] = {"pipeline_spec": next(yaml.safe_load_all((ROOT / PACKAGE).read_text()))}
    server.states = [{"state": "PENDING"}, last]
    environment = {"KFP_ENDPOINT": server.url, "KFP_WATCH_SECONDS": "0.05"}
    done = call(["kfp", "run", "submit", PACKAGE, *arguments, "--watch"], tmp_path, **environment)
    changes = [line.split()[1:] for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert changes == [
        ["prerequisites", "SUCCEEDED"],
        ["evaluate", names[0], "SUCCEEDED"],
        ["evaluate", names[1], "FAILED"],
        ["compare", "SKIPPED"],
    ]
    assert "lists no more" not in done.stdout


def test_watch_says_where_the_list_froze(server: Server, tmp_path: Path) -> None:
    """A run that ended while Kubeflow still lists a task as running: it stopped to read the list, and that is said."""
    frozen = [node("shapes"), node("compare-driver(0)", "RUNNING")]
    server.states = [{"state": "PENDING"}, {"state": "SUCCEEDED", "run_details": {"task_details": frozen}}]
    environment = {"KFP_ENDPOINT": server.url, "KFP_WATCH_SECONDS": "0.05"}
    done = call(["kfp", "run", "submit", PACKAGE, "--watch"], tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    *_, said, last = done.stdout.splitlines()
    assert said.startswith("Kubeflow lists no more tasks: ") and last == "run run-1: SUCCEEDED"


def test_ctrl_c_stops_watching_and_not_the_run(server: Server, tmp_path: Path) -> None:
    """Ctrl-C asks the server for nothing, and says how to go on; those words watch the run to its end."""
    server.states = [tasks(run="RUNNING", shapes="RUNNING")]
    environment = os.environ | {"HOME": str(tmp_path), "KFP_ENDPOINT": server.url, "KFP_WATCH_SECONDS": "0.05"}
    words = [str(ROOT / "bin" / "kfp"), "run", "submit", PACKAGE, "-w"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # where these tests run in a shell's background, SIGINT is ignored, and a child would inherit that
    heeding: Any = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    watching = subprocess.Popen(words, cwd=ROOT, env=environment, **pipes, **heeding)
    while sum(each.path.endswith("/runs/run-1") for each in server.requests) < 3:
        assert watching.poll() is None
        time.sleep(0.05)
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=60)
    assert watching.returncode == 1 and "Traceback" not in said
    assert said.strip().endswith("the run goes on; to watch it again: kfp run get --watch run-1")
    assert {each.method for each in server.requests if "run-1" in each.path} == {"GET"}

    server.states = [tasks(run="SUCCEEDED", shapes="SUCCEEDED")]
    again = call(["kfp", "run", "get", "--watch", "run-1"], tmp_path, KFP_ENDPOINT=server.url)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == "run run-1: SUCCEEDED"


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ([PACKAGE], {}, "no Kubeflow Pipelines endpoint; set KFP_ENDPOINT"),
        (
            ["pipelines/nothing.yaml"],
            {"KFP_ENDPOINT": "http://127.0.0.1:9"},
            "no such pipeline file: pipelines/nothing",
        ),
        (["params.yaml"], {"KFP_ENDPOINT": "http://127.0.0.1:9"}, "params.yaml is not a compiled pipeline"),
        ([PACKAGE, "dvc.yaml"], {"KFP_ENDPOINT": "http://127.0.0.1:9"}, "one pipeline file"),
        ([PACKAGE, "sead=3"], {"KFP_ENDPOINT": "http://127.0.0.1:9"}, "unknown parameter sead; the pipeline takes"),
    ],
)
def test_mistakes_are_one_line(words: list[str], environment: dict[str, str], message: str, tmp_path: Path) -> None:
    """A mistake ends at once, with one line that names it, before anything is asked of a server."""
    done = call(["kfp", "run", "submit", *words], tmp_path, **environment)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


def test_other_commands_pass_through(tmp_path: Path) -> None:
    """A command without a server gives what the stock one gives."""
    for words in (["--version"], ["dsl", "compile", "--help"]):
        ours, theirs = call(["kfp", *words], tmp_path), call([stock(), *words], tmp_path)
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


def test_python_from_path(server: Server, tmp_path: Path) -> None:
    """In a checkout without .venv the python3 on PATH runs it; one without kfp is told what to do."""
    checkout, programs = tmp_path / "checkout", tmp_path / "programs"
    for folder in ("bin", "pipelines"):
        shutil.copytree(ROOT / folder, checkout / folder)
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    words = [str(checkout / "bin" / "kfp"), "run", "submit", PACKAGE]
    assert call(words, tmp_path, KFP_ENDPOINT=server.url, PATH=path).returncode == 0
    check_run(server, {})

    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare = call(words, tmp_path, KFP_ENDPOINT=server.url, PATH=path)
    assert bare.returncode == 1 and "has no kfp; run `make setup`" in bare.stderr


RECURRING = ["kfp", "recurring-run", "create", "--enabled", "--experiment-name", "un2clip", "--job-name", "nightly",
             "--cron-expression", "0 0 2 * * *", "--pipeline-package-path", PACKAGE]  # fmt: skip


def test_a_recurring_run_is_of_the_compiled_file(server, tmp_path) -> None:
    """Through bin/kfp: both documents of the file, the schedule, switched on, the values as they were given."""
    done = call([*RECURRING, "images=data/photos", "data_version=7"], tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    (made,) = server.bodies("/recurringruns")
    spec, platform = yaml.safe_load_all((ROOT / PACKAGE).read_text())
    assert made["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}
    assert made["runtime_config"]["parameters"] == {"images": "data/photos", "data_version": "7"}
    assert (made["display_name"], made["mode"], made["experiment_id"]) == ("nightly", "ENABLE", "exp-1")
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *" and made["max_concurrency"] == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=3", "kfp: a recurring run takes texts alone, and seed is none; compile a file"),
        ("sead=3", "kfp: unknown parameter sead"),
        ("hub_secret=un2clip-s3", "must name two Secrets"),
    ],
)
def test_a_recurring_run_that_could_not_work_is_not_made(server, tmp_path, word, said) -> None:
    """The server would take each, and the run would fail every night."""
    done = call([*RECURRING, word], tmp_path, KFP_ENDPOINT=server.url)
    assert done.returncode == 1 and said in done.stderr and server.bodies("/recurringruns") == []
