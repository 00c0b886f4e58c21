"""The compiled pipeline: fresh, well-formed, and with what a cluster needs to run it."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines import resources
from pipelines.un2clip import PACKAGE, arguments, compile_to, main, read_params
from un2clip import __version__
from un2clip.config import UserError

ROOT = Path(__file__).parents[2]
SPEC, PLATFORM = yaml.safe_load_all(PACKAGE.read_text())
PARAMETERS = SPEC["root"]["inputDefinitions"]["parameters"]
EXECUTORS = SPEC["deploymentSpec"]["executors"]
KUBERNETES = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
ACCELERATED = ("backbones", "latents", "finetune", "diffusion_loss", "evaluate", "reconstruct")


def label(stage: str) -> str:
    return f"exec-{stage.replace('_', '-')}"


def test_compiled_yaml_is_fresh(tmp_path: Path) -> None:
    """Compiling again gives the checked-in file; kfp's patch version alone may differ."""
    compile_to(tmp_path / "again.yaml", read_params())
    again, checked_in = (path.read_text() for path in (tmp_path / "again.yaml", PACKAGE))
    version = re.compile(r"^sdkVersion: .*$", re.MULTILINE)
    assert version.sub("", again) == version.sub("", checked_in), "run `python -m pipelines.un2clip`"


def test_compiling_is_deterministic(tmp_path: Path) -> None:
    """Another process compiles the same bytes: kfp's own header prints dicts in a random order."""
    for name in ("a.yaml", "b.yaml"):
        words = [sys.executable, "-m", "pipelines.un2clip", "--to", str(tmp_path / name)]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def test_both_documents_parse_strictly() -> None:
    """The two documents are a PipelineSpec and a PlatformSpec, without a field that those do not know."""
    spec = json_format.ParseDict(SPEC, pipeline_spec_pb2.PipelineSpec())
    platform = json_format.ParseDict(PLATFORM, pipeline_spec_pb2.PlatformSpec())
    assert spec.pipeline_info.name == "un2clip"
    assert set(platform.platforms) == {"kubernetes"}


def test_defaults_are_the_numbers_of_params_yaml() -> None:
    """Each parameter's default is params.yaml's, or the cluster's; none is without."""
    expected = arguments(yaml.safe_load((ROOT / "params.yaml").read_text())) | resources.CLUSTER
    assert {name: each["defaultValue"] for name, each in PARAMETERS.items()} == expected


def test_default_run_needs_no_accelerator() -> None:
    """With the defaults a cluster of plain nodes can run it, from the image of this version."""
    assert PARAMETERS["accelerator_limit"]["defaultValue"] == "0"
    assert PARAMETERS["node_selector"]["defaultValue"] == {}
    assert PARAMETERS["tolerations"]["defaultValue"] == []
    assert PARAMETERS["image"]["defaultValue"].endswith(f":{__version__}")


def test_parameter_names_are_texts_in_yaml() -> None:
    """No parameter's name is a word such as n, y, on or off, which YAML 1.1 reads as a truth value."""
    assert [name for name in PARAMETERS if yaml.safe_load(name) != name or name in ("n", "y")] == []


@pytest.mark.parametrize("stage", resources.STAGES)
def test_accelerators_where_needed_and_only_there(stage: str) -> None:
    """Accelerated stages have accelerators, selector, tolerations and shared memory; the others none of it."""
    container, platform = EXECUTORS[label(stage)]["container"], KUBERNETES[label(stage)]
    found = {
        "accelerator": "accelerator" in container["resources"],
        "selector": "nodeSelectorJson" in platform.get("nodeSelector", {}),
        "tolerations": any("tolerationJson" in each for each in platform.get("tolerations", [])),
        "shared memory": any(
            each["mountPath"] == "/dev/shm" and each["medium"] == "Memory"
            for each in platform.get("emptyDirMounts", [])
        ),
    }
    assert set(found.values()) == {stage in ACCELERATED}, found


@pytest.mark.parametrize("stage", resources.STAGES)
def test_every_stage_finds_mlflow_and_its_run(stage: str) -> None:
    """Each pod gets the tracking server's address and credentials, if there are any, and the run's id."""
    platform = KUBERNETES[label(stage)]
    (secret,) = platform["secretAsEnv"]
    assert secret["optional"] is True
    assert {each["envVar"] for each in secret["keyToEnv"]} == set(resources.MLFLOW_KEYS)
    assert {"name": "UN2CLIP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"} in platform["fieldPathAsEnv"]


def dags() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for component in (SPEC["root"], *SPEC["components"].values()):
        if "dag" in component:
            yield component["dag"]["tasks"], component["inputDefinitions"]["parameters"]


def test_every_reference_reaches_its_task() -> None:
    """No placeholder and no name in the YAML points at an input that its task or loop was not given.

    kfp 2.17 compiles such references (accelerators and memory within a loop) without a word.
    """
    checked = 0
    for tasks, given in dags():
        for task in tasks.values():
            inputs = task.get("inputs", {}).get("parameters", {})
            wanted = [each["componentInputParameter"] for each in inputs.values() if "componentInputParameter" in each]
            component = SPEC["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                at = component["executorLabel"]
                placeholders = re.findall(r"inputs\.parameters\['([^']+)'\]", json.dumps(EXECUTORS[at]["container"]))
                assert set(placeholders) <= set(inputs), at
                wanted += re.findall(r'"componentInputParameter": "([^"]+)"', json.dumps(KUBERNETES[at]))
            assert set(wanted) <= set(given), task["taskInfo"]["name"]
            checked += len(wanted)
    assert checked > 50


def test_only_promote_is_never_cached() -> None:
    """Every stage may be reused from the cache but the one that acts on the registry."""
    uncached = {
        task["componentRef"]["name"]
        for tasks, _ in dags()
        for task in tasks.values()
        if "executorLabel" in SPEC["components"][task["componentRef"]["name"]] and not task["cachingOptions"]
    }
    assert uncached == {"comp-promote"}


def test_nothing_is_installed_at_run_time() -> None:
    """A pod runs what its image holds: no component installs a package."""
    assert not re.search(r"pip\W+install", PACKAGE.read_text())


def test_missing_section_is_named() -> None:
    """A params file without a stage's section cannot be compiled, and the message names what is missing."""
    params = read_params()
    with pytest.raises(UserError, match=r"has no method, finetune;"):
        arguments({key: value for key, value in params.items() if key not in ("finetune", "method")})


def test_null_is_named() -> None:
    """Kubeflow cannot carry a null, not even deep in a section; the message names it in full."""
    with pytest.raises(UserError, match=r"^finetune\.deep\[1\]\.key must not be null"):
        arguments(read_params() | {"finetune": {"deep": [0, {"key": None}]}})


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("images: data/mine\n", "images cannot be set for Kubeflow"),
        ("sead: 3\n", "unknown parameter sead"),
        ("- seed\n", "must hold a mapping"),
    ],
)
def test_unfit_overlay_is_one_line(overlay: str, message: str, tmp_path: Path) -> None:
    """An overlay that cannot be compiled ends with one line that says why, and leaves no file."""
    (tmp_path / "overlay.yaml").write_text(overlay)
    with pytest.raises(SystemExit) as ended:
        main(["--params", str(tmp_path / "overlay.yaml"), "--to", str(tmp_path / "out.yaml")])
    assert message in str(ended.value) and "\n" not in str(ended.value)
    assert not (tmp_path / "out.yaml").exists()


def test_overlay_changes_the_defaults(tmp_path: Path) -> None:
    """An overlay's numbers become the compiled defaults, and the next compilation knows nothing of them."""
    (tmp_path / "overlay.yaml").write_text("seed: 77\npromote:\n  champion: auto\n")
    main(["--params", str(tmp_path / "overlay.yaml"), "--to", str(tmp_path / "out.yaml")])
    main(["--to", str(tmp_path / "plain.yaml")])
    changed, plain = (
        next(yaml.safe_load_all((tmp_path / name).read_text()))["root"]["inputDefinitions"]["parameters"]
        for name in ("out.yaml", "plain.yaml")
    )
    assert changed["seed"]["defaultValue"] == 77
    assert changed["promote_params"]["defaultValue"] == {**plain["promote_params"]["defaultValue"], "champion": "auto"}
    assert plain["seed"]["defaultValue"] == read_params()["seed"]


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        ({"kfp", "kfp_server_api"}, ("components/", "pipelines/")),
        ({"kubernetes", "kubeflow"}, ("pipelines/", "src/un2clip/trainjob.py")),
        ({"mlflow"}, ("src/un2clip/tracking.py",)),
        ({"dvc"}, ()),
    ],
)
def test_import_boundaries(packages: set[str], allowed: tuple[str, ...]) -> None:
    """kfp is known to components and pipelines, Kubernetes to pipelines and
    trainjob.py, MLflow to tracking.py, DVC to nobody."""
    modules = [path for folder in ("src", "components", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 20
    users = {str(path.relative_to(ROOT)) for path in modules if imports(path) & packages}
    assert {user for user in users if not user.startswith(allowed)} == set()
