"""pipelines/manifests: they build, they are valid, and they give what the tasks ask of the Kubernetes API, no more."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.resources import CLUSTER, CLUSTERS, NODE_ACCOUNT, read_cluster
from tests.kubernetes_stub import granted
from un2clip.cluster.secret_files import SECRETS

MANIFESTS = Path(__file__).parents[2] / "pipelines" / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
ACCOUNTS = {"team": ("default-editor", "un2clip"), "standalone": ("pipeline-runner", "kubeflow")}

#: What the tasks may. tests/e2e/test_trainjob.py runs with these rights alone, and uses each.
ALLOWED = {
    ("create", "trainer.kubeflow.org", "trainjobs"),
    ("get", "trainer.kubeflow.org", "trainjobs"),
    ("delete", "trainer.kubeflow.org", "trainjobs"),
    ("get", "trainer.kubeflow.org", "trainingruntimes"),
    ("get", "trainer.kubeflow.org", "clustertrainingruntimes"),
    ("list", "", "pods"),
    ("list", "", "events"),
    ("list", "", "nodes"),
    ("get", "", "pods/log"),
}

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on PATH to build the overlays with")


def build(overlay: str) -> list[dict[str, Any]]:
    words = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    return list(yaml.safe_load_all(subprocess.run(words, capture_output=True, text=True, check=True).stdout))


def source(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def test_the_role_grants_the_list_and_nothing_else() -> None:
    """No star, no write but a TrainJob's, no Secret: the rules are exactly the list above."""
    assert granted() == ALLOWED


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid(overlay: str) -> None:
    """What kubectl builds has only fields that Kubernetes knows, and stays in the one namespace."""
    objects = build(overlay)
    assert len(objects) > 5
    account, namespace = ACCOUNTS[overlay]
    for each in objects:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
        if each["kind"] not in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
            assert each["metadata"]["namespace"] == namespace, each["metadata"]["name"]
        if each["kind"].endswith("RoleBinding"):
            assert each["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    roles = {(each["kind"], each["metadata"]["name"]) for each in objects}
    references = {tuple(each["roleRef"][key] for key in ("kind", "name")) for each in objects if "roleRef" in each}
    assert len(references) == 2 and references <= roles


@needs_kubectl
def test_a_wrong_field_would_be_noticed() -> None:
    """The validation above is strict: a misspelt field is an error."""
    claim = next(each for each in build("team") if each["kind"] == "PersistentVolumeClaim")
    claim["spec"]["storageclassName"] = "fast"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(claim, kubernetes_validate.latest_version(), strict=True)


@needs_kubectl
def test_the_network_is_closed() -> None:
    """Every pod is denied by default both ways, and comes in only from the namespace itself."""
    policies = {each["metadata"]["name"]: each["spec"] for each in build("team") if each["kind"] == "NetworkPolicy"}
    deny = policies.pop("un2clip-default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    sources = [peer for spec in policies.values() for rule in spec.get("ingress", []) for peer in rule["from"]]
    assert sources == [{"podSelector": {}}]


def test_the_example_has_every_secret_and_no_value() -> None:
    """Names and keys are those of pipelines/resources.py; the values are empty."""
    found = {each["metadata"]["name"]: each["stringData"] for each in source("secrets.example.yaml")}
    assert {name: tuple(keys) for name, keys in found.items()} == {CLUSTER[key]: SECRETS[key] for key in SECRETS}
    assert {value for keys in found.values() for value in keys.values()} == {""}


def test_names_are_those_of_the_pipeline() -> None:
    """The claim is the one that clusters/gpu.yaml mounts, for all nodes; the node's account has no token."""
    (claim,), (account,) = source("base/volume.yaml"), source("base/node-account.yaml")
    assert claim["metadata"]["name"] == read_cluster(CLUSTERS / "gpu.yaml").arguments["volume"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert account["metadata"]["name"] == NODE_ACCOUNT
    assert account["automountServiceAccountToken"] is False


def test_the_served_champion_is_a_pod_that_runs_mlflows_server() -> None:
    """KServe's own fields are three; what is below them is valid as a pod's, and the words are ones that MLflow has."""
    import click
    from mlflow.models.cli import serve

    (service,) = source("serving/inference-service.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"].pop("predictor")
    assert service["spec"] == {} and predictor.pop("minReplicas") == 1
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": predictor}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    (container,) = predictor["containers"]
    assert container["command"] == ["mlflow", "models", "serve"]
    options, rest, _ = serve.make_parser(click.Context(serve)).parse_args(list(container["args"]))
    assert rest == [] and options["model_uri"] == "models:/un2clip@champion" and options["env_manager"] == "local"
    port = container["ports"][0]["containerPort"]
    assert str(port) == str(options["port"]) and port == container["readinessProbe"]["httpGet"]["port"]
    assert container["envFrom"] == [{"secretRef": {"name": CLUSTER["mlflow_secret"]}}]
    pod["spec"]["containers"][0]["comand"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
