"""The compiled pipeline: fresh, well-formed, and with what a cluster needs to run it."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines import assistants, resources
from pipelines.compiling import ASSISTANTS, PACKAGE, PACKAGES, WORLD, arguments, compile_to, main, read_params
from pipelines.resources import CLUSTERS, read_cluster
from un2clip import __version__
from un2clip.cluster import prerequisites
from un2clip.cluster.scheduling import quantity
from un2clip.cluster.secret_files import MOUNTED
from un2clip.errors import UserError

ROOT = Path(__file__).parents[2]
SPEC, PLATFORM = yaml.safe_load_all(PACKAGE.read_text())
PARAMETERS = SPEC["root"]["inputDefinitions"]["parameters"]
EXECUTORS = SPEC["deploymentSpec"]["executors"]
KUBERNETES = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
GPU, GPU_PLATFORM = yaml.safe_load_all((ROOT / "pipelines/un2clip-gpu.yaml").read_text())
OF_ASSISTANTS, OF_ASSISTANTS_PLATFORM = yaml.safe_load_all(ASSISTANTS.read_text())
ACCELERATED = ("backbones", "latents", "finetune", "diffusion_loss", "evaluate", "reconstruct", "assistant", "ask")
# those of assistants.yaml that un2clip.yaml has not
EXECUTORS = {**OF_ASSISTANTS["deploymentSpec"]["executors"], **EXECUTORS}
KUBERNETES = {**OF_ASSISTANTS_PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"], **KUBERNETES}
ALL_PARAMETERS = {**OF_ASSISTANTS["root"]["inputDefinitions"]["parameters"], **PARAMETERS}


def label(stage: str) -> str:
    return f"exec-{stage.replace('_', '-')}"


@pytest.mark.parametrize("package", [*PACKAGES, ASSISTANTS], ids=lambda path: path.name)
def test_compiled_yaml_is_fresh(package: Path, tmp_path: Path) -> None:
    """Compiling again gives each checked-in file; kfp's patch version alone may differ."""
    of = [assistants.pipeline] if package == ASSISTANTS else []
    compile_to(tmp_path / "again.yaml", read_params(), read_cluster(PACKAGES.get(package)), *of)
    again, checked_in = (path.read_text() for path in (tmp_path / "again.yaml", package))
    version = re.compile(r"^sdkVersion: .*$", re.MULTILINE)
    assert version.sub("", again) == version.sub("", checked_in), "run `python -m pipelines.un2clip`"


def test_compiling_is_deterministic(tmp_path: Path) -> None:
    """Another process compiles the same bytes: kfp's own header prints dicts in a random order."""
    for name in ("a.yaml", "b.yaml"):
        words = [sys.executable, "-m", "pipelines.un2clip", "--to", str(tmp_path / name)]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


@pytest.mark.parametrize("package", [*PACKAGES, ASSISTANTS], ids=lambda path: path.name)
def test_both_documents_parse_strictly(package: Path) -> None:
    """The documents are a PipelineSpec and a PlatformSpec of KubernetesExecutorConfigs, without an unknown field."""
    documents = list(yaml.safe_load_all(package.read_text()))
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    platform = json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    assert spec.pipeline_info.name == ("assistants" if package == ASSISTANTS else "un2clip")
    assert set(platform.platforms) == {"kubernetes"}
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    pods = {name for name, each in documents[0]["deploymentSpec"]["executors"].items() if "importer" not in each}
    assert set(executors) == pods
    for executor in executors.values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_the_two_files_are_one_pipeline() -> None:
    """The file for GPUs has the tasks, the edges, the commands and the parameters of the plain one."""

    def graph(spec: dict[str, Any]) -> list[Any]:
        graphs = [each["dag"]["tasks"] for each in (spec["root"], *spec["components"].values()) if "dag" in each]
        keys = ("componentRef", "dependentTasks", "cachingOptions", "retryPolicy")
        return [
            (name, [task.get(key) for key in keys], task.get("inputs", {}).get("artifacts"))
            for tasks in graphs
            for name, task in tasks.items()
        ]

    assert graph(GPU) == graph(SPEC)
    assert GPU["deploymentSpec"] == SPEC["deploymentSpec"]
    assert set(GPU["root"]["inputDefinitions"]["parameters"]) == set(PARAMETERS)


def test_defaults_are_the_repositorys_numbers() -> None:
    """Each parameter's default is that of the repository's numbers, or the cluster's; none is without."""
    expected = arguments(read_params()) | arguments(read_params(), assistants.pipeline) | resources.CLUSTER
    assert {name: each["defaultValue"] for name, each in ALL_PARAMETERS.items()} == expected


def test_default_run_needs_no_accelerator() -> None:
    """With the defaults a cluster of plain nodes can run it, from the image of this version."""
    assert PARAMETERS["accelerator_limit"]["defaultValue"] == "0"
    assert PARAMETERS["node_selector"]["defaultValue"] == {}
    assert PARAMETERS["tolerations"]["defaultValue"] == []
    assert PARAMETERS["image"]["defaultValue"].endswith(f":{__version__}")


def test_parameter_names_are_texts_in_yaml() -> None:
    """No name of an input or output is a word such as n, y, on or off, which YAML 1.1 reads as a truth value."""
    sides = [
        each.get(side, {})
        for each in (SPEC["root"], *SPEC["components"].values())
        for side in ("inputDefinitions", "outputDefinitions")
    ]
    names = {name for side in sides for kind in side.values() for name in kind}
    assert len(names) > 50
    assert [name for name in names if yaml.safe_load(name) != name or name.lower() in ("n", "y")] == []


@pytest.mark.parametrize("spec", [SPEC, GPU], ids=["plain", "gpu"])
def test_every_default_is_of_its_type(spec: dict[str, Any]) -> None:
    """Each parameter has a default, of the type that it declares: the server would refuse another one."""
    types = {
        "STRING": str,
        "NUMBER_INTEGER": int,
        "NUMBER_DOUBLE": float,
        "STRUCT": dict,
        "LIST": list,
        "BOOLEAN": bool,
    }
    for name, each in spec["root"]["inputDefinitions"]["parameters"].items():
        default, wanted = each["defaultValue"], types[each["parameterType"]]
        whole = wanted is int and isinstance(default, float) and default.is_integer()  # as kfp writes a number
        assert whole or type(default) is wanted, name


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


@pytest.mark.parametrize("task", [*resources.STAGES, *resources.EXTRAS])
def test_every_task_finds_mlflow_and_its_run(task: str) -> None:
    """Each pod gets the tracking server's and its store's address and credentials, if any, and the run's id."""
    platform = KUBERNETES[label(task)]
    given = {
        each["secretNameParameter"]["componentInputParameter"].removeprefix("pipelinechannel--"): each
        for each in platform["secretAsVolume"]
    }
    with_hub = {"hub_secret"} if task in ("backbones", "assistant", "prerequisites") else set()
    assert set(given) == {"mlflow_secret", "s3_secret"} | with_hub
    for name, secret in given.items():
        assert secret["optional"] is True
        assert secret["mountPath"] == f"{MOUNTED}/{name}"  # where read_secrets looks for its keys
    assert "secretAsEnv" not in platform
    assert {"name": "UN2CLIP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"} in platform["fieldPathAsEnv"]


def test_the_volume_is_where_data_and_weights_are_read() -> None:
    """Compiled with a volume, the tasks that use it have it at the image's working directory; without, none has."""
    mounts = {
        name: [(each["pvcNameParameter"], each["mountPath"]) for each in executor.get("pvcMount", [])]
        for name, executor in GPU_PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()
    }
    found = {name for name, mount in mounts.items() if mount}
    assert found == {label(each) for each in ("prerequisites", "ingest", "backbones", "finetune", "evaluate", "finish")}
    for name in found:
        ((source, path),) = mounts[name]
        assert source["componentInputParameter"].removeprefix("pipelinechannel--") == "volume"
        assert path == resources.WORKDIR
    assert not any("pvcMount" in executor for executor in KUBERNETES.values())


def test_the_volume_lies_over_the_images_working_directory() -> None:
    """Relative paths of params.yaml are on the volume only if it is mounted where the image's commands start."""
    dockerfile = ROOT / "docker/Dockerfile"
    if not dockerfile.is_file():
        pytest.skip("this checkout has no docker/Dockerfile")
    assert f"WORKDIR {resources.WORKDIR}\n" in dockerfile.read_text()


def test_constants_of_the_cluster_reach_the_file() -> None:
    """Time limit, shared memory and retries of clusters/gpu.yaml are in the compiled file, or nowhere at all."""
    compiled = read_cluster(CLUSTERS / "gpu.yaml").compiled
    executor = GPU_PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label("finetune")]
    assert executor["activeDeadlineSeconds"] == str(compiled.timeout_s) == "259200"
    assert executor["emptyDirMounts"][0]["sizeLimit"] == compiled.shared_memory == "16Gi"
    retries = [
        task["retryPolicy"]["maxRetryCount"] for tasks, _ in dags() for task in tasks.values() if "retryPolicy" in task
    ]
    assert retries == [compiled.retries] * 7


def test_what_holds_for_a_run_as_a_whole(tmp_path: Path) -> None:
    """Nothing unless it is asked for; then the deadline, how long pods stay, and a claim for finetune's checkpoints."""
    for platform in (PLATFORM, GPU_PLATFORM):
        assert "pipelineConfig" not in platform["platforms"]["kubernetes"]
    (tmp_path / "cluster.yaml").write_text("compiled: {workspace: 50Gi, run_deadline_s: 86400, ttl_s: 3600}\n")
    compile_to(tmp_path / "out.yaml", read_params(), read_cluster(tmp_path / "cluster.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "out.yaml").read_text())
    asked = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert asked["workspace"]["size"] == "50Gi"
    assert (
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        .platforms["kubernetes"]
        .HasField("pipelineConfig")
    )
    assert (asked["activeDeadlineSeconds"], asked["resourceTtlOnCompletion"]) == (86400, 3600)
    used = [(name, key) for tasks, _ in dags(spec) for name, task in tasks.items() for key in on_workspace(task)]
    assert used == [("finetune", "checkpoints")]


def on_workspace(task: dict[str, Any]) -> list[str]:
    given = task.get("inputs", {}).get("parameters", {})
    return [key for key, each in given.items() if "{{$.workspace_path}}" in str(each.get("runtimeValue"))]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_retry_has_time(package: Path) -> None:
    """No task carries kfp's window of one hour: every attempt may run to its limit, and for weeks without one."""
    compiled = read_cluster(PACKAGES[package]).compiled
    spec = next(yaml.safe_load_all(package.read_text()))
    tasks = [
        task
        for each in (spec["root"], *spec["components"].values())
        for task in each.get("dag", {"tasks": {}})["tasks"].values()
    ]
    windows = {float(task["retryPolicy"]["backoffMaxDuration"].rstrip("s")) for task in tasks if "retryPolicy" in task}
    assert min(windows) >= max(3 * (compiled.timeout_s + 3600), 30 * 86_400)


@pytest.mark.parametrize(("timeout_s", "retries"), [(0, 0), (0, 2), (3600, 1), (259_200, 2), (2_592_000, 4)])
def test_the_window_holds_every_attempt(timeout_s: int, retries: int) -> None:
    """The window grows with the limit, the number of attempts and the waits between them."""
    compiled = replace(read_cluster().compiled, timeout_s=timeout_s, retries=retries)
    waits = sum(compiled.backoff_s * 2**i for i in range(retries))
    assert resources.retry_window_s(compiled) >= max(2_592_000, (retries + 1) * timeout_s + waits)


@pytest.mark.parametrize("stage", resources.STAGES)
def test_a_stages_resources_are_its_own(stage: str) -> None:
    """Cores and memory are in a task's cache key: a stage's own are no other's, and finetune's accelerators are its."""
    asked = json.dumps(EXECUTORS[label(stage)]["container"]["resources"])
    found = set(re.findall(r"pipelinechannel--(\w+)", asked))
    limit = f"{stage}_accelerator_limit" if stage in ("finetune", "assistant") else "accelerator_limit"
    accelerators = {"accelerator_type", limit} if stage in ACCELERATED else set()
    assert found == {f"{stage}_cpu", f"{stage}_memory"} | accelerators
    everything = json.dumps([EXECUTORS[label(other)] for other in resources.STAGES if other != stage])
    assert f"{stage}_cpu'" not in everything and f"{stage}_memory'" not in everything


@pytest.mark.parametrize("name", [name for name in ALL_PARAMETERS if name.endswith(("_cpu", "_memory"))])
def test_a_node_of_two_cores_is_enough(name: str) -> None:
    """By default no stage asks for more than what Kubernetes leaves of a node of two cores and 8 GiB."""
    assert quantity(ALL_PARAMETERS[name]["defaultValue"], name) <= (1 if name.endswith("_cpu") else 5 * 2**30)


@pytest.mark.parametrize("task", resources.EXTRAS)
def test_the_first_and_the_last_task_ask_for_little(task: str) -> None:
    """They fit beside anything."""
    asked = EXECUTORS[label(task)]["container"]["resources"]
    assert quantity(asked["resourceCpuRequest"], task) <= 1 and quantity(asked["resourceMemoryLimit"], task) <= 2**30


def test_accelerated_stages_are_those_that_prerequisites_looks_for() -> None:
    """The first task looks for accelerators on behalf of exactly the stages that get them."""
    assert {name for name, needs in resources.STAGES.items() if needs.accelerated} == {*prerequisites.ACCELERATED}
    assert {*prerequisites.ACCELERATED} == {*ACCELERATED}


def dags(spec: dict[str, Any] = SPEC) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for component in (spec["root"], *spec["components"].values()):
        if "dag" in component:
            yield component["dag"]["tasks"], component["inputDefinitions"]["parameters"]


@pytest.mark.parametrize(("spec", "least"), [(SPEC, 50), (OF_ASSISTANTS, 30)], ids=["un2clip", "assistants"])
def test_every_reference_reaches_its_task(spec: dict[str, Any], least: int) -> None:
    """No placeholder and no name in the YAML points at an input that its task or loop was not given.

    kfp 2.17 compiles such references (accelerators and memory within a loop) without a word.
    """
    checked = 0
    for tasks, given in dags(spec):
        for task in tasks.values():
            inputs = task.get("inputs", {}).get("parameters", {})
            wanted = [each["componentInputParameter"] for each in inputs.values() if "componentInputParameter" in each]
            component = spec["components"][task["componentRef"]["name"]]
            if component.get("executorLabel") in KUBERNETES:
                at = component["executorLabel"]
                placeholders = re.findall(r"inputs\.parameters\['([^']+)'\]", json.dumps(EXECUTORS[at]["container"]))
                assert set(placeholders) <= set(inputs), at
                wanted += re.findall(r'"componentInputParameter": "([^"]+)"', json.dumps(KUBERNETES[at]))
            assert set(wanted) <= set(given), task["taskInfo"]["name"]
            checked += len(wanted)
    assert checked > least


def test_assistants_have_their_volume_and_their_tries(tmp_path: Path) -> None:
    """Compiled for GPUs: training and asking mount the volume, where their unfinished state is, and are tried again."""
    overlay, to = CLUSTERS / "gpu.yaml", tmp_path / "assistants.yaml"
    main(["--assistants", "--cluster", str(overlay), "--to", str(to)])
    spec, platform = yaml.safe_load_all(to.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {name for name, each in executors.items() if each.get("pvcMount")}
    assert mounted == {*map(label, ("assistant", "assistant_2", "ask", "prerequisites_assistants", "finish"))}
    retried = {name for tasks, _ in dags(spec) for name, task in tasks.items() if "retryPolicy" in task}
    assert retried == {"assistant", "assistant-2", "ask"}
    assert spec["root"]["inputDefinitions"]["parameters"]["checkpoints"]["defaultValue"] == "models/checkpoints"
    assert executors["exec-assistant"]["emptyDirMounts"][0]["sizeLimit"] == "16Gi"


def test_what_looks_at_the_world_outside_is_never_cached() -> None:
    """Every task may be reused from the cache but those that look at the cluster, or act on MLflow."""
    uncached = {
        task["componentRef"]["name"]
        for tasks, _ in dags()
        for task in tasks.values()
        if "executorLabel" in SPEC["components"][task["componentRef"]["name"]] and not task["cachingOptions"]
    }
    assert uncached == {"comp-promote", "comp-prerequisites", "comp-finish"}


def test_nothing_is_installed_at_run_time() -> None:
    """A pod runs what its image holds: no component installs a package."""
    assert not re.search(r"pip\W+install", PACKAGE.read_text())


def test_missing_section_is_named() -> None:
    """A params file without a stage's section cannot be compiled, and the message names what is missing."""
    params = read_params()
    with pytest.raises(UserError, match=r"have no method, finetune;"):
        arguments({key: value for key, value in params.items() if key not in ("finetune", "method")})


def test_null_is_named() -> None:
    """Kubeflow cannot carry a null, not even deep in a section; the message names it in full."""
    with pytest.raises(UserError, match=r"^finetune\.deep\[1\]\.key must not be null"):
        arguments(read_params() | {"finetune": {"deep": [0, {"key": None}]}})


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
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


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("args: {}\n", "unknown section args; known: arguments, compiled"),
        ("arguments: {cpus: '2'}\n", "unknown key arguments.cpus; known: image,"),
        ("arguments: {accelerator_limit: 8}\n", "arguments.accelerator_limit must be a str, as '0' is; got 8"),
        ("compiled: {volume: 1}\n", "compiled.volume must be a bool, as False is; got 1"),
        ("compiled: {workspace: much}\n", 'compiled.workspace: Workspace size "much" is invalid'),
        ("compiled: {workspace: 1Gi, volume: true}\n", "workspace must be empty with a volume"),
        ("compiled: {ttl_s: -1}\n", "compiled.ttl_s must be at least 0, got -1"),
    ],
)
def test_unfit_cluster_is_one_line(overlay: str, message: str, tmp_path: Path) -> None:
    """A cluster's file with a wrong key or type ends with one line that names it."""
    (tmp_path / "cluster.yaml").write_text(overlay)
    with pytest.raises(SystemExit) as ended:
        main(["--cluster", str(tmp_path / "cluster.yaml"), "--to", str(tmp_path / "out.yaml")])
    assert message in str(ended.value) and "\n" not in str(ended.value)


def test_the_worlds_own_folders_are_the_task_shapes(tmp_path: Path) -> None:
    """`images` is empty where it is what dvc.yaml's shapes writes, and otherwise the overlay's own folder."""
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["shapes"]["outs"]
    assert ALL_PARAMETERS["instructions"]["defaultValue"] == ""
    assert set(WORLD.values()) <= set(outs)
    assert (PARAMETERS["images"]["defaultValue"], PARAMETERS["benchmark_data"]["defaultValue"]) == ("", "")
    given = arguments(read_params(ROOT / "configs/photos.yaml"))
    assert (given["images"], given["benchmark_data"]) == ("data/photos", "")


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
        (
            {"kubernetes", "kubeflow"},
            ("pipelines/", "src/un2clip/cluster/scheduling.py", "src/un2clip/cluster/trainjob.py"),
        ),
        ({"mlflow"}, ("src/un2clip/tracking/",)),
        ({"dvc"}, ()),
    ],
)
def test_import_boundaries(packages: set[str], allowed: tuple[str, ...]) -> None:
    """kfp is known to components and pipelines, MLflow to tracking/, Kubernetes to two modules, DVC to nobody.

    A component can import nothing but what the image holds, the package: so Kubernetes is asked from there, by
    cluster/scheduling.py (what a pod may ask before a run) and trainjob.py (a training on several nodes).
    """
    modules = [path for folder in ("src", "components", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 20
    users = {str(path.relative_to(ROOT)) for path in modules if imports(path) & packages}
    assert {user for user in users if not user.startswith(allowed)} == set()
