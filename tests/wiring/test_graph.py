"""Said twice, proved equal: the graph and the names, in the stages, dvc.yaml, the components and the pipeline."""

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
SPEC = next(yaml.safe_load_all((ROOT / "pipelines" / "un2clip.yaml").read_text()))
COMPONENTS = SPEC["components"]

#: What a component has beyond its stage: a folder on the volume instead of an artifact, and its version for the
#: cache; metrics and a page for Kubeflow's UI; and the scores of the diffusion loss beside the others', because
#: Kubeflow cannot put artifacts of different tasks into one list. Tasks beyond dvc.yaml are in resources.EXTRAS.
EXTRA = {
    "ingest": {"folder", "version"},
    "diffusion_loss": {"metrics"},
    "evaluate": {"folder", "version", "metrics"},
    "reconstruct": {"page"},
    "compare": {"page", "diffusion_loss"},
    "promote": {"diffusion_loss"},
}

Edges = set[tuple[str, str]]


def function_of(component: str) -> str:
    """The Python function behind a component of the compiled YAML; task names may carry a number."""
    args = SPEC["deploymentSpec"]["executors"][COMPONENTS[component]["executorLabel"]]["container"]["args"]
    return str(args[args.index("--function_to_execute") + 1])


def tasks(dag: dict[str, Any], outer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
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
        artifacts = {name: producers(dag, source, outer) for name, source in inputs.get("artifacts", {}).items()}
        if "dag" in COMPONENTS[component]:
            yield from tasks(COMPONENTS[component]["dag"], {"parameters": parameters, "artifacts": artifacts})
        else:
            yield function_of(component), parameters, artifacts


def producers(dag: dict[str, Any], source: dict[str, Any], outer: dict[str, Any]) -> set[tuple[str, str]]:
    """Where an artifact comes from, as (stage, output): from outside of a loop, of a task, collected from a loop."""
    if "componentInputArtifact" in source:
        return set(outer["artifacts"][source["componentInputArtifact"]])
    task, output = (source["taskOutputArtifact"][key] for key in ("producerTask", "outputArtifactKey"))
    component = dag["tasks"][task]["componentRef"]["name"]
    if "dag" not in COMPONENTS[component]:
        return {(function_of(component), output)}
    inner = COMPONENTS[component]["dag"]
    return {
        (function_of(inner["tasks"][each["producerSubtask"]]["componentRef"]["name"]), each["outputArtifactKey"])
        for each in inner["outputs"]["artifacts"][output]["artifactSelectors"]
    }


def all_tasks() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    root = {name: name for name in SPEC["root"]["inputDefinitions"]["parameters"]}
    return list(tasks(SPEC["root"]["dag"], {"parameters": root, "artifacts": {}}))


def pipeline_edges() -> Edges:
    return {
        (producer, stage) for stage, _, artifacts in all_tasks() for each in artifacts.values() for producer, _ in each
    }


def dvc_edges(folder: Path) -> Edges:
    """DVC's own reading of dvc.yaml and the numbers, in a folder of its own, with the matrix collapsed."""
    for name in ("dvc.yaml", *read_files(ROOT / "params.yaml")):
        shutil.copy(ROOT / name, folder)
    with Repo.init(str(folder), no_scm=True) as repo:
        pairs = [(after.name, before.name) for after, before in repo.index.graph.edges]
    return {(before.partition("@")[0], after.partition("@")[0]) for after, before in pairs}


def flags(stage: str) -> dict[str, str]:
    """The flags of a stage's command in dvc.yaml: name -> text after the equals sign."""
    return dict(re.findall(r"--([a-z_]+)=(\S+)", DVC[stage]["cmd"]))


def component_of(stage: str) -> Any:
    return getattr(importlib.import_module(f"components.{stage}.component"), stage).component_spec


def test_the_two_graphs_are_equal(tmp_path: Path) -> None:
    """Each edge of dvc.yaml is an edge of the compiled pipeline, and the other way round."""
    assert pipeline_edges() == dvc_edges(tmp_path)


def test_the_graph_is_the_one_meant(tmp_path: Path) -> None:
    """The edges that a person would draw are among them, so that two empty graphs cannot be equal."""
    assert {("shapes", "ingest"), ("evaluate", "compare"), ("diffusion_loss", "promote")} <= dvc_edges(tmp_path)


def test_every_benchmark_of_the_laptop_world_fits_into_the_matrix(tmp_path: Path) -> None:
    """One that is not in the default list, too: it waits for `shapes`, and `compare` for it."""
    files = read_files(ROOT / "params.yaml")
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    for name, content in files.items():
        changed = content | ({"benchmarks": ["zeroshot", "probe"]} if "benchmarks" in content else {})
        (tmp_path / name).write_text(yaml.safe_dump(changed))
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (stage,) = (each for each in repo.index.stages if each.name == "evaluate@probe")
        edges = {(after.name, before.name) for after, before in repo.index.graph.edges}
    assert "--benchmark=probe " in stage.cmd and "--scores=scores/probe" in stage.cmd
    assert {("evaluate@probe", "shapes"), ("compare", "evaluate@probe")} <= edges


def test_an_artifact_keeps_its_name() -> None:
    """An input is fed from the output of the same name, not from another one of the same stage."""
    for stage, _, artifacts in all_tasks():
        for name, sources in artifacts.items():
            wanted = (
                {("diffusion_loss", "scores")} if name in EXTRA.get(stage, set()) else {(s, name) for s, _ in sources}
            )
            assert sources == wanted, (stage, name)


def test_the_stages_are_the_same_in_the_same_order() -> None:
    """dvc.yaml, the list of stages, the resources and the pipeline's source state them in one order."""
    source = ast.parse((ROOT / "pipelines" / "un2clip.py").read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    named = [node.func.id for node in sorted(calls, key=lambda node: node.lineno) if node.func.id in STAGES]  # type: ignore[attr-defined]
    assert tuple(DVC) == STAGES == tuple(resources.STAGES) == tuple(named)
    assert sorted(stage for stage, _, _ in all_tasks()) == sorted((*STAGES, *resources.EXTRAS))


@pytest.mark.parametrize("stage", STAGES)
def test_one_name_in_four_places(stage: str) -> None:
    """A stage's argument, its flag in dvc.yaml, its component's name and the compiled pipeline's are the same."""
    spec = component_of(stage)
    compiled = next(each for name, each in COMPONENTS.items() if "dag" not in each and function_of(name) == stage)
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


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_outputs_everywhere(stage: str) -> None:
    """What a component gives out is what dvc.yaml lists as outs, and the rest of its paths are deps."""
    listed = [path for each in DVC[stage]["outs"] for path in (each if isinstance(each, dict) else [each])]
    outs = {name for name, value in flags(stage).items() if value in listed}
    read = [path.removesuffix("/${item.benchmark}") for path in DVC[stage].get("deps", [])]
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
        assert hints[name] == {"path": Path, "list": list[Path], "Integer": int, "String": str}[kind], name


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
    """`images` and `benchmark_data`, each with its version, are the folders of the two stages that read data."""
    given = {stage: (each["folder"], each["version"]) for stage, each, _ in all_tasks() if "folder" in each}
    assert given == {"ingest": ("images", "data_version"), "evaluate": ("benchmark_data", "benchmark_version")}


def waits_for() -> dict[str, set[str]]:
    """Task -> every task that must end before it, by the compiled order; a loop has the name of the task in it."""
    (body,) = (each["dag"]["tasks"] for each in COMPONENTS.values() if "shapes" in each.get("dag", {}).get("tasks", {}))
    names = {
        name: next(iter(COMPONENTS[each["componentRef"]["name"]].get("dag", {}).get("tasks", {name: 0})))
        for name, each in body.items()
    }
    order = {names[name]: {names[each] for each in task.get("dependentTasks", [])} for name, task in body.items()}
    for _ in order:  # the longest path has no more steps than there are tasks
        order = {name: before.union(*(order[each] for each in before)) for name, before in order.items()}
    return order


def test_nothing_starts_before_the_prerequisites_are_met() -> None:
    """Every other task of the run waits for `prerequisites`; only the exit handler runs whatever happened."""
    order = waits_for()
    assert {name for name, before in order.items() if "prerequisites" not in before} == {"prerequisites"}
    assert len(order) == len(STAGES) + 1
    assert SPEC["root"]["dag"]["tasks"]["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_stages_that_only_read_run_side_by_side() -> None:
    """The three measurements of a tuned encoder wait for it and for none of each other, and the loop is unlimited."""
    order, readers = waits_for(), {"diffusion-loss", "evaluate", "reconstruct"}
    assert all("finetune" in order[name] and not order[name] & readers for name in readers)
    (loop,) = (
        t for c in COMPONENTS.values() for t in c.get("dag", {}).get("tasks", {}).values() if "parameterIterator" in t
    )
    assert "iteratorPolicy" not in loop
