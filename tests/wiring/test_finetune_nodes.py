"""The pipeline compiled for several nodes: the same graph, and a finetune whose settings go to a TrainJob."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from components.finetune.component import finetune
from components.finetune_nodes.component import finetune_nodes
from pipelines.compiling import compile_to, read_params
from pipelines.resources import CLUSTERS, STAGES, WORKDIR, read_cluster
from un2clip.cluster.nodes import finetune_on_nodes
from un2clip.cluster.secret_files import MOUNTED
from un2clip.errors import UserError


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Both documents, for one node with GPUs and for two."""
    folder = tmp_path_factory.mktemp("compiled")
    for name in ("gpu", "two-nodes"):
        compile_to(folder / f"{name}.yaml", read_params(), read_cluster(CLUSTERS / f"{name}.yaml"))
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in folder.iterdir()}


def graph(spec: dict[str, Any]) -> list[Any]:
    """Every task with its inputs, the several nodes' own name and numbers taken out."""
    own = inspect.signature(finetune_nodes.python_func).parameters.keys() - finetune.component_spec.inputs.keys()
    renamed = json.loads(json.dumps(spec).replace("finetune-nodes", "finetune"))
    graphs = [each["dag"] for each in (renamed["root"], *renamed["components"].values()) if "dag" in each]
    for task in (task for dag in graphs for task in dag["tasks"].values()):
        if task["componentRef"]["name"] in ("comp-finetune", "comp-finish"):  # the last task tidies up after nodes
            parameters = task["inputs"]["parameters"]
            task["inputs"]["parameters"] = {key: value for key, value in parameters.items() if key not in own}
    return graphs


def test_the_graph_is_the_same(compiled: dict[str, list[dict[str, Any]]]) -> None:
    """Two nodes change which component does finetune's work, and no other task, name or edge."""
    assert "comp-finetune-nodes" in compiled["two-nodes"][0]["components"]
    assert "comp-finetune" not in compiled["two-nodes"][0]["components"]
    assert graph(compiled["two-nodes"][0]) == graph(compiled["gpu"][0])


def test_the_documents_parse_strictly(compiled: dict[str, list[dict[str, Any]]]) -> None:
    """No field that Kubeflow does not know, and the settings that are handed on are those that the launcher reads."""
    spec = json_format.ParseDict(compiled["two-nodes"][0], pipeline_spec_pb2.PipelineSpec())
    passed = spec.components["comp-finetune-nodes"].task_config_passthroughs
    kinds = pipeline_spec_pb2.TaskConfigPassthroughType.TaskConfigPassthroughTypeEnum
    assert {kinds.Name(each.field): each.apply_to_task for each in passed} == {
        "RESOURCES": False,
        "KUBERNETES_NODE_SELECTOR": False,
        "KUBERNETES_TOLERATIONS": False,
        "KUBERNETES_AFFINITY": False,
        "KUBERNETES_VOLUMES": True,
    }


def test_what_the_nodes_are_told(compiled: dict[str, list[dict[str, Any]]]) -> None:
    """Numbers of the cluster's file, and places where the task's own volumes are: the claim and finetune's Secrets."""
    spec, platform = compiled["two-nodes"]
    tasks = [each["dag"]["tasks"] for each in spec["components"].values() if "dag" in each]
    (task,) = [each["finetune-nodes"] for each in tasks if "finetune-nodes" in each]
    constants = {
        name: value["runtimeValue"]["constant"]
        for name, value in task["inputs"]["parameters"].items()
        if "runtimeValue" in value and "{{" not in str(value)
    }
    assert constants == {
        "nodes": 2,
        "volume": WORKDIR,
        "secrets": MOUNTED,
        "shared_memory": "64Gi",
        "service_account": "un2clip-node",
        "timeout_s": 259200,
    }
    executor = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-finetune-nodes"]
    assert [each["mountPath"] for each in executor["pvcMount"]] == [WORKDIR]
    mounted = {each["mountPath"]: each["optional"] for each in executor["secretAsVolume"]}
    assert mounted == {f"{MOUNTED}/{secret}": True for secret in STAGES["finetune"].secrets}


def test_the_component_has_the_stages_names() -> None:
    """All names of `finetune` are names of `finetune_nodes`; the rest are the launcher's."""
    stage, several = finetune.component_spec, finetune_nodes.component_spec
    assert several.outputs.keys() == stage.outputs.keys()
    beyond = {*several.inputs} - {*stage.inputs}
    assert {*stage.inputs} <= {*several.inputs}
    assert beyond - {"task_config"} <= {*inspect.signature(finetune_on_nodes).parameters}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("compiled: {nodes: 2}", "compiled.nodes must be 1 without a volume, on which they would meet; got 2"),
        ("compiled: {nodes: 0}", "compiled.nodes must be at least 1, got 0"),
    ],
)
def test_nodes_need_a_volume(content: str, said: str, tmp_path: Path) -> None:
    """A cluster file that cannot work is refused when it is compiled."""
    (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(UserError, match=said):
        read_cluster(tmp_path / "cluster.yaml")
