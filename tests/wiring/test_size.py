"""How large the compiled pipeline makes Argo's node status, which Kubeflow's API reads only up to 1 MiB.

Argo repeats in its nodes what the pipeline says of a task: a driver's node, and its attempt's, hold the component, the
task and the container; five more hold the pod's patch, which is the component, the command, the inputs' values and the
Secrets again. The estimate adds these up. On 2026-11-26 the pipeline of commit 661b1e8 had 1,073,203 bytes with
two benchmarks, and about 100,000 for each further one; this sum gave 557,513 and 56,000 for it. SCALE is the
difference: most of it is JSON escaped within JSON.
"""

import ast
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.compiling import ASSISTANTS, PACKAGES, ROOT, read_params
from pipelines.sources import shorten
from un2clip import config

SCALE = 1.9
PATCH = 900  # letters of a pod's patch that are the same for each task: the launcher's own arguments
ARTIFACT = 350  # of an artifact in the executor's input: its address, name and type
KEY = 130  # of a Secret's key as a variable
SECRET = 200  # of a Secret as a volume, and its mount


def size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def nodes(documents: list[Any], benchmarks: int) -> Iterator[tuple[str, int, int]]:
    """Each task: its name, how often it is there, and how large its nodes are together."""
    spec, platform = documents
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    defaults = {name: each["defaultValue"] for name, each in spec["root"]["inputDefinitions"]["parameters"].items()}

    def walk(dag: dict[str, Any], times: int) -> Iterator[tuple[str, int, int]]:
        for name, task in dag["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                turns = benchmarks if "parameterIterator" in task else 0
                yield name, times * (turns + 1), 2 * (size(component) + size(task))
                yield from walk(component["dag"], times * max(1, turns))
                continue
            label = component["executorLabel"]
            executor = spec["deploymentSpec"]["executors"][label]
            if "importer" in executor:  # no pod: a driver's node alone
                yield name, times, 2 * (size(component) + size(task) + size(executor))
                continue
            container = executor["container"]
            given = task.get("inputs", {}).get("parameters", {})
            sources = {key: each.get("componentInputParameter", "").split("--")[-1] for key, each in given.items()}
            values = sum(size(defaults.get(source, "")) + size(key) + 2 for key, source in sources.items())
            sides = [component.get(side, {}).get("artifacts", {}) for side in ("inputDefinitions", "outputDefinitions")]
            keys = sum(len(secret["keyToEnv"]) for secret in settings[label].get("secretAsEnv", []))
            patch = size(component) + size(container["command"]) + values + PATCH
            patch += KEY * keys + SECRET * len(settings[label].get("secretAsVolume", []))
            patch += ARTIFACT * sum(map(len, sides))
            driver = size(component) + size(task) + size(container) + size(settings[label])
            yield name, times, 2 * driver + 5 * patch

    return walk(spec["root"]["dag"], 1)


def estimate(documents: list[Any], benchmarks: int) -> float:
    return SCALE * sum(times * letters for _, times, letters in nodes(documents, benchmarks))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_ten_benchmarks_are_no_larger_than_they_were(package) -> None:
    """With ten benchmarks the status stays below this many bytes; who adds to every task sees it here.

    It was 1,621,000 before the third output of `shapes` and the numbers of `conditions` and of the gate's power, and
    1,628,000 before those of `contrast`, its phases and `faults`; 1,630,000 before the options of `reconstruction`,
    which every benchmark's task is handed; 1,629,000 before it was handed the folder of embeddings of texts.
    """
    documents = list(yaml.safe_load_all(package.read_text()))
    found = estimate(documents, 10)
    assert found < 1_675_000, f"{found:.0f}"
    assert (estimate(documents, 110) - found) / 100 < 91_000, "of each benchmark"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_default_benchmarks_are_below_the_limit(package) -> None:
    """With its default benchmarks Kubeflow can list every task, by this estimate; with all of params.yaml it could not.

    Where it can, configs/kubeflow.yaml may go.
    """
    documents = list(yaml.safe_load_all(package.read_text()))
    found, all_of_them = (
        estimate(documents, len(numbers["benchmarks"]))
        for numbers in (read_params(), config.read_params(ROOT / "params.yaml"))
    )
    assert found < 2**20 < all_of_them, f"{found:.0f} {all_of_them:.0f}"


def test_three_language_models_are_below_the_limit() -> None:
    """A run of assistants with three seeds can be listed, by this estimate, and one with four cannot."""
    documents = list(yaml.safe_load_all(ASSISTANTS.read_text()))
    found = estimate(documents, 3)
    assert found < 2**20 < estimate(documents, 4), f"{found:.0f}"
    assert (estimate(documents, 103) - found) / 100 < 250_000, "of each seed"


@pytest.mark.parametrize("package", [*PACKAGES, ASSISTANTS], ids=lambda path: path.name)
def test_a_source_is_as_short_as_it_can_be(package) -> None:
    """No docstring, comment, blank line within, or import that the annotations do not need is in a compiled source."""
    executors = next(yaml.safe_load_all(package.read_text()))["deploymentSpec"]["executors"]
    executors = [executor for executor in executors.values() if "importer" not in executor]
    assert len(executors) > 6
    for executor in executors:
        *_, script, source = executor["container"]["command"]
        assert source == ast.unparse(ast.parse(source)) and "  " not in script
        heading, function = ast.parse(source).body
        assert ast.unparse(heading) == "from kfp import dsl"
        assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is None


def test_shortening_keeps_the_function() -> None:
    """What the function computes, its annotations and its defaults stay; what surrounds them goes."""
    source = "import kfp\nfrom kfp import dsl\nfrom typing import *\n\ndef add(a: int, b: int = 2) -> int:\n"
    source += '    """Said."""\n    # why\n    return a + b  # so\n'
    *shell, script, short = shorten(["sh", "-ec", "run     it", source])
    assert (shell, script) == (["sh", "-ec"], "run it")
    assert short == "from kfp import dsl\n\ndef add(a: int, b: int=2) -> int:\n    return a + b"
