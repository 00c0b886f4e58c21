"""Said twice, proved equal: the graph and the names, in the stages, dvc.yaml, the components and the pipelines.

Kubeflow has dvc.yaml's graph in two pipelines: assistants.yaml has the stages `assistant` and `ask`, and reads what an
earlier run of un2clip.yaml left.
"""

import ast
import importlib
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from dvc.repo import Repo

from pipelines import resources
from un2clip.config import read_files
from un2clip.stages import STAGES, get_stage, sections

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SPEC, ASSISTANTS = (
    next(yaml.safe_load_all((ROOT / f"pipelines/{n}.yaml").read_text())) for n in ("un2clip", "assistants")
)
#: Of assistants.yaml: the address that it is given -> of what, as (stage, output).
IMPORTED = {"backbones_uri": ("backbones", "backbones"), "encoder_uri": ("finetune", "encoder")}
#: What has another name than what feeds it: (stage, input) -> the outputs that do.
FED = {
    ("assistant", "encoder"): {("backbones", "backbones")},  # of which it reads clip/
    ("ask", "reference"): {("assistant", "assistant")},
    ("ask", "tuned"): {("assistant", "assistant")},
}
#: The edges of dvc.yaml that no pipeline has. There `promote` waits for all below scores/; on a cluster it has decided
#: before assistants are trained, and no rule of the gate reads what they answer.
DVC_ONLY = {("ask", "promote")}

#: What a component has beyond its stage: a folder on the volume instead of an artifact, and its version for the
#: cache; metrics and a page for Kubeflow's UI; and the scores of the diffusion loss beside the others', because
#: Kubeflow cannot put artifacts of different tasks into one list. Tasks beyond dvc.yaml are in resources.EXTRAS.
EXTRA = {
    "ingest": {"folder", "version"},
    "diffusion_loss": {"metrics"},
    "evaluate": {"folder", "version", "metrics"},
    "assistant": {"folder", "version"},
    "ask": {"folder", "version", "metrics"},
    "reconstruct": {"page"},
    "compare": {"page", "diffusion_loss"},
    "promote": {"diffusion_loss"},
}

Edges = set[tuple[str, str]]


def executor_of(spec: dict[str, Any], component: str) -> dict[str, Any]:
    return dict(spec["deploymentSpec"]["executors"][spec["components"][component]["executorLabel"]])


def stage_of(spec: dict[str, Any], component: str) -> str:
    """The stage behind a component of the compiled YAML: its Python function's name, in another dialect or not."""
    args = executor_of(spec, component)["container"]["args"]
    return str(args[args.index("--function_to_execute") + 1]).removesuffix("_assistants")


def tasks(
    spec: dict[str, Any], dag: dict[str, Any], outer: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every task of a graph and of the loops in it, with what its inputs mean at the root.

    Yields (stage, parameters, artifacts): parameters maps a name to the root's parameter or to None, artifacts
    maps a name to the set of (stage, output) that it may come from.
    """
    for task in dag["tasks"].values():
        component, inputs = task["componentRef"]["name"], task.get("inputs", {})
        parameters = {
            name: outer["parameters"].get(source.get("componentInputParameter"))
            for name, source in inputs.get("parameters", {}).items()
        }
        artifacts = {name: producers(spec, dag, source, outer) for name, source in inputs.get("artifacts", {}).items()}
        if "dag" in spec["components"][component]:
            inner = {"parameters": parameters, "artifacts": artifacts}
            yield from tasks(spec, spec["components"][component]["dag"], inner)
        elif "importer" not in executor_of(spec, component):
            yield stage_of(spec, component), parameters, artifacts


def producers(
    spec: dict[str, Any], dag: dict[str, Any], source: dict[str, Any], outer: dict[str, Any]
) -> set[tuple[str, str]]:
    """Where an artifact comes from, as (stage, output): outside of a loop, a task, a loop, or an earlier run."""
    if "componentInputArtifact" in source:
        return set(outer["artifacts"][source["componentInputArtifact"]])
    task, output = (source["taskOutputArtifact"][key] for key in ("producerTask", "outputArtifactKey"))
    component = dag["tasks"][task]["componentRef"]["name"]
    if "dag" in spec["components"][component]:
        inner = spec["components"][component]["dag"]
        return {
            (stage_of(spec, inner["tasks"][each["producerSubtask"]]["componentRef"]["name"]), each["outputArtifactKey"])
            for each in inner["outputs"]["artifacts"][output]["artifactSelectors"]
        }
    if "importer" in executor_of(spec, component):
        address = dag["tasks"][task]["inputs"]["parameters"]["uri"]["componentInputParameter"]
        return {IMPORTED[outer["parameters"][address]]}
    return {(stage_of(spec, component), output)}


def all_tasks(*specs: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every task of a pipeline; by default of both."""
    found = []
    for spec in specs or (SPEC, ASSISTANTS):
        root = {name: name for name in spec["root"]["inputDefinitions"]["parameters"]}
        found += list(tasks(spec, spec["root"]["dag"], {"parameters": root, "artifacts": {}}))
    return found


def pipeline_edges(*specs: dict[str, Any]) -> Edges:
    found = all_tasks(*specs)
    return {(producer, stage) for stage, _, artifacts in found for each in artifacts.values() for producer, _ in each}


def dvc_edges(folder: Path, **changes: Any) -> Edges:
    """DVC's own reading of dvc.yaml and the numbers, in a folder of its own, with the matrix collapsed."""
    pairs = [(after.name, before.name) for after, before in graph_of(folder, **changes).edges]
    return {(before.partition("@")[0], after.partition("@")[0]) for after, before in pairs}


def graph_of(folder: Path, **changes: Any) -> Any:
    """DVC's graph of the stages where some of the numbers at the top of params.yaml are others."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name, content in read_files(ROOT / "params.yaml").items():
        changed = content | {key: value for key, value in changes.items() if key in content}
        (folder / name).write_text(yaml.safe_dump(changed))
    with Repo.init(str(folder), no_scm=True) as repo:
        return repo.index.graph


def flags(stage: str) -> dict[str, str]:
    """The flags of a stage's command in dvc.yaml: name -> text after the equals sign."""
    return dict(re.findall(r"--([a-z_]+)=(\S+)", DVC[stage]["cmd"]))


def component_of(stage: str) -> Any:
    return getattr(importlib.import_module(f"components.{stage}.component"), stage).component_spec


def test_the_two_graphs_are_equal(tmp_path: Path) -> None:
    """Each edge of dvc.yaml is an edge of the compiled pipelines, and the other way round."""
    assert pipeline_edges() == dvc_edges(tmp_path, language_seeds=[0, 1]) - DVC_ONLY


def test_without_language_models_the_two_graphs_are_equal(tmp_path: Path) -> None:
    """By default, so in the demo: DVC has no stage of assistants, nor has un2clip.yaml a task."""
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["language_seeds"] == []
    edges = dvc_edges(tmp_path)
    assert pipeline_edges(SPEC) == edges
    assert not {"assistant", "ask"} & {stage for edge in edges for stage in edge}
    assert not {"assistant", "ask"} & {stage for stage, _, _ in all_tasks(SPEC)}


def test_each_language_model_is_trained_with_both_encoders(tmp_path: Path) -> None:
    """Two seeds: four assistants, which wait for their own encoder alone, and each benchmark is asked of two."""
    graph = graph_of(tmp_path, language_seeds=[0, 3], questions=["pope", "mmvp"])
    waits = {stage.name: {before.name for _, before in graph.out_edges(stage)} for stage in graph}
    assert waits["assistant@3-backbones"] == {"shapes", "backbones"}, "not for the encoder, which changes more often"
    assert waits["assistant@3-encoder"] == {"shapes", "finetune"}
    assert waits["ask@3-pope"] == {"shapes", "assistant@3-backbones", "assistant@3-encoder"}
    assert sum("@3-" in name or "@0-" in name for name in waits) == 8
    assert {"ask@0-mmvp", "ask@0-pope", "ask@3-mmvp", "ask@3-pope"} < waits["compare"]
    (asked,) = (stage.cmd for stage in graph if stage.name == "ask@3-pope")
    assert "--reference=models/assistants/3/backbones --tuned=models/assistants/3/encoder" in asked


def test_reference_and_tuned_are_not_mixed_up() -> None:
    """In the pipeline `ask` gets as reference the assistant that reads `backbones`, and as tuned the encoder's."""
    (loop,) = (
        each["dag"] for each in ASSISTANTS["components"].values() if "ask" in each.get("dag", {}).get("tasks", {})
    )
    (body,) = (
        each["dag"] for each in ASSISTANTS["components"].values() if "shapes" in each.get("dag", {}).get("tasks", {})
    )
    for role, address in (("reference", "backbones_uri"), ("tuned", "encoder_uri")):
        read = loop["tasks"]["ask"]["inputs"]["artifacts"][role]["taskOutputArtifact"]["producerTask"]
        assert loop["tasks"][read]["taskInfo"]["name"] == f"assistant-{role}"
        channel = loop["tasks"][read]["inputs"]["artifacts"]["encoder"]["componentInputArtifact"]
        importer = channel.removeprefix("pipelinechannel--").removesuffix("-artifact")
        assert body["tasks"][importer]["inputs"]["parameters"]["uri"]["componentInputParameter"].endswith(address)


def test_the_graph_is_the_one_meant(tmp_path: Path) -> None:
    """The edges that a person would draw are among them, so that two empty graphs cannot be equal."""
    assert {("shapes", "ingest"), ("evaluate", "compare"), ("diffusion_loss", "promote")} <= dvc_edges(tmp_path)
    found = pipeline_edges(ASSISTANTS)
    assert {("backbones", "assistant"), ("finetune", "assistant"), ("assistant", "ask"), ("ask", "compare")} <= found


def test_every_benchmark_of_the_laptop_world_fits_into_the_matrix(tmp_path: Path) -> None:
    """One that is not in the default list, too: it waits for `shapes`, and `compare` for it."""
    graph = graph_of(tmp_path, benchmarks=["zeroshot", "probe"])
    (stage,) = (each for each in graph if each.name == "evaluate@probe")
    edges = {(after.name, before.name) for after, before in graph.edges}
    assert "--benchmark=probe " in stage.cmd and "--scores=scores/probe" in stage.cmd
    assert {("evaluate@probe", "shapes"), ("compare", "evaluate@probe")} <= edges


def test_an_artifact_keeps_its_name() -> None:
    """An input is fed from the output of the same name, not from another one of the same stage."""
    for stage, _, artifacts in all_tasks():
        for name, sources in artifacts.items():
            wanted = (
                {("diffusion_loss", "scores")} if name in EXTRA.get(stage, set()) else {(s, name) for s, _ in sources}
            )
            assert sources in (wanted, FED.get((stage, name))), (stage, name)


def test_the_stages_are_the_same_in_the_same_order() -> None:
    """dvc.yaml, the list of stages, the resources and the pipelines' sources state them in one order."""
    assert tuple(DVC) == STAGES == tuple(resources.STAGES)
    of_assistants = ["shapes", "assistant", "ask", "compare"]
    others = [stage for stage in STAGES if stage not in ("assistant", "ask")]
    for name, spec, stages in (("un2clip", SPEC, others), ("assistants", ASSISTANTS, of_assistants)):
        source = ast.parse((ROOT / "pipelines" / f"{name}.py").read_text())
        calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        called = [node.func.id for node in sorted(calls, key=lambda node: node.lineno)]  # type: ignore[attr-defined]
        assert [each for word in called if (each := word.removesuffix("_assistants")) in STAGES] == stages
        twice = ["assistant"] if spec is ASSISTANTS else []
        assert sorted(stage for stage, _, _ in all_tasks(spec)) == sorted([*stages, *twice, *resources.EXTRAS])


@pytest.mark.parametrize("stage", STAGES)
def test_one_name_in_four_places(stage: str) -> None:
    """A stage's argument, its flag in dvc.yaml, its component's name and the compiled pipeline's are the same."""
    spec = component_of(stage)
    compiled = next(each for found, each in components() if found == stage)
    places = {
        "component": {*spec.inputs, *spec.outputs} - EXTRA.get(stage, set()),
        "pipeline": {
            name
            for side in ("inputDefinitions", "outputDefinitions")
            for kind in compiled.get(side, {}).values()
            for name in kind
        }
        - EXTRA.get(stage, set()),
        "dvc.yaml": {"params", *flags(stage), *sections(stage)},
        "function": set(inspect.signature(get_stage(stage)).parameters),
    }
    assert all(names == places["function"] for names in places.values()), places


def components() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component that is a pod, with the name of its stage."""
    for spec in (SPEC, ASSISTANTS):
        for name, each in spec["components"].items():
            if "dag" not in each and "container" in executor_of(spec, name):
                yield stage_of(spec, name), each


def test_the_other_dialect_of_compare_has_its_names() -> None:
    """`compare_assistants` is `compare` but for what a run of assistants lacks."""
    names = [set(each.inputs) | set(each.outputs) for each in map(component_of, ("compare", "compare_assistants"))]
    assert names[0] - names[1] == {"diffusion_loss", "reconstructions"} and names[1] < names[0]


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_outputs_everywhere(stage: str) -> None:
    """What a component gives out is what dvc.yaml lists as outs, and the rest of its paths are deps."""
    listed = [path for each in DVC[stage]["outs"] for path in (each if isinstance(each, dict) else [each])]
    outs = {name for name, value in flags(stage).items() if value in listed}
    read = [re.sub(r"/\$\{item\.(benchmark|questions)\}$", "", path) for path in DVC[stage].get("deps", [])]
    deps = {name for name, value in flags(stage).items() if value in read}
    spec = component_of(stage)
    paths = {name for name, each in spec.inputs.items() if each.type.startswith("system.")}
    assert set(spec.outputs) - EXTRA.get(stage, set()) == outs
    assert paths - EXTRA.get(stage, set()) == deps


@pytest.mark.parametrize("stage", STAGES)
def test_types_are_the_same(stage: str) -> None:
    """A path of the stage is an artifact, a list of paths a list of artifacts, a number or word a parameter."""
    hints, spec = get_type_hints(get_stage(stage)), component_of(stage)
    for name, each in {**spec.inputs, **spec.outputs}.items():
        if name in ("params", *sections(stage)) or name in EXTRA.get(stage, set()):
            continue
        listed = each.is_artifact_list
        kind = each.type if not each.type.startswith("system.") else "list" if listed else "path"
        known = {"path": Path, "list": list[Path], "Integer": int, "String": str, "List": list[str]}
        assert hints[name] == known[kind], name


def test_each_stage_gets_its_own_section() -> None:
    """A stage's `params` is its own section and no other, in a loop too; seed, method, device are the pipeline's."""
    for stage, parameters, _ in all_tasks():
        if stage in resources.EXTRAS:
            continue
        assert parameters["params"] == f"{stage}_params"
        assert all(parameters[name] == f"{name}_params" for name in sections(stage))
        for name in {"seed", "method", "device", "checkpoints"} & set(parameters):
            assert parameters[name] == name


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_notices_a_change_of_a_stages_section(stage: str) -> None:
    """A stage lists its own section and those it takes beside it, in each file that holds a part of them."""
    files = read_files(ROOT / "params.yaml").items()
    wanted = [{name: [key]} for key in (stage, *sections(stage)) for name, content in files if key in content]
    listed = [each if isinstance(each, dict) else {"params.yaml": [each]} for each in DVC[stage]["params"]]
    assert wanted and listed == wanted


def test_a_folder_on_the_volume_reaches_its_stage() -> None:
    """`images`, `benchmark_data` and `instructions`, each with its version, are the folders of those that read data."""
    given = {stage: (each["folder"], each["version"]) for stage, each, _ in all_tasks() if "folder" in each}
    assert given == {
        "ingest": ("images", "data_version"),
        "evaluate": ("benchmark_data", "benchmark_version"),
        "assistant": ("instructions", "instruction_version"),
        "ask": ("benchmark_data", "benchmark_version"),
    }


def waits_for(spec: dict[str, Any]) -> dict[str, set[str]]:
    """Task -> every task that must end before it, by the compiled order; a loop has the name of a task in it."""
    components = spec["components"]
    (body,) = (each["dag"]["tasks"] for each in components.values() if "shapes" in each.get("dag", {}).get("tasks", {}))
    names = {
        name: next(iter(components[each["componentRef"]["name"]].get("dag", {}).get("tasks", {name: 0})))
        for name, each in body.items()
    }
    order = {names[name]: {names[each] for each in task.get("dependentTasks", [])} for name, task in body.items()}
    for _ in order:  # the longest path has no more steps than there are tasks
        order = {name: before.union(*(order[each] for each in before)) for name, before in order.items()}
    return order


def test_nothing_starts_before_the_prerequisites_are_met() -> None:
    """Every other task of the run waits for `prerequisites`; only the exit handler runs whatever happened."""
    for spec, first, n in ((SPEC, "prerequisites", len(STAGES) - 2 + 1), (ASSISTANTS, "prerequisites-assistants", 6)):
        order = waits_for(spec)
        assert {name for name, before in order.items() if first not in before} == {first}
        assert len(order) == n
        assert spec["root"]["dag"]["tasks"]["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_stages_that_only_read_run_side_by_side() -> None:
    """The three measurements of a tuned encoder wait for it and for none of each other, and the loop is unlimited."""
    order, readers = waits_for(SPEC), {"diffusion-loss", "evaluate", "reconstruct"}
    assert all("finetune" in order[name] and not order[name] & readers for name in readers)
    for spec in (SPEC, ASSISTANTS):
        dags = [each.get("dag", {}).get("tasks", {}) for each in spec["components"].values()]
        (loop,) = (task for dag in dags for task in dag.values() if "parameterIterator" in task)
        assert "iteratorPolicy" not in loop
