"""Compile the pipelines, with the numbers of params.yaml, world.yaml and clusters/*.yaml as defaults."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from pipelines import assistants, resources
from pipelines.resources import CLUSTER, Cluster, Compiled, read_cluster
from pipelines.un2clip import pipeline
from un2clip import config
from un2clip.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipelines" / "un2clip.yaml"
#: The checked-in files, and the cluster that each is for.
PACKAGES = {PACKAGE: None, ROOT / "pipelines" / "un2clip-gpu.yaml": resources.CLUSTERS / "gpu.yaml"}
#: The pipeline of assistants, for plain nodes; for others it is compiled with a cluster's file.
ASSISTANTS = ROOT / "pipelines" / "assistants.yaml"
#: Laid under any other overlay: which of the default benchmarks a run on Kubeflow leaves out, and why.
KUBEFLOW = ROOT / "configs" / "kubeflow.yaml"
HEADER = "# Compiled from pipelines/{}.py, params.yaml and world.yaml by `python -m pipelines.un2clip`; do not edit.\n"
#: Where dvc.yaml's stage `shapes` writes: as `images` or `benchmark_data` they mean the output of the task `shapes`.
WORLD = {
    "images": "data/world/images",
    "benchmark_data": "data/world/benchmarks",
    "instructions": "data/world/instructions",
}
Pipeline = Callable[[Compiled], GraphComponent]


def arguments(params: Mapping[str, Any], of: Pipeline = pipeline) -> dict[str, Any]:
    """The run's pipeline arguments from the content of a params file; the cluster's are in `CLUSTER`.

    Raises:
        UserError: a section is missing, or holds a null, which Kubeflow cannot carry.
    """
    inputs = of(read_cluster().compiled).component_spec.inputs
    keys = {name: name.removesuffix("_params") for name in inputs if name not in CLUSTER}
    missing = [key for key in keys.values() if key not in params]
    if missing:
        raise UserError(f"the numbers have no {', '.join(missing)}; the pipeline needs {', '.join(keys.values())}")
    nulls = [found for key in keys.values() for found in _nulls(params[key], key)]
    if nulls:
        raise UserError(f"{', '.join(nulls)} must not be null: a Kubeflow parameter cannot carry it; name a value")
    return {name: "" if params[key] == WORLD.get(key) else params[key] for name, key in keys.items()}


def compile_to(path: Path, params: Mapping[str, Any], cluster: Cluster, of: Pipeline = pipeline) -> None:
    """Compile a pipeline with `params` as the defaults of its parameters; the same input gives the same bytes."""
    graph = of(cluster.compiled)
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "un2clip.yaml"
        known = cluster.arguments | arguments(params, of)
        defaults = {name: known[name] for name in graph.component_spec.inputs}
        compiler.Compiler().compile(graph, str(raw), pipeline_parameters=defaults)
        text = raw.read_text()
    # kfp's own header prints the dict parameters in an order that changes from run to run
    path.write_text(re.sub(r"\A(#.*\n)*", lambda _: HEADER.format(graph.name), text))


def read_params(*overlays: Path) -> dict[str, Any]:
    """The repository's numbers; over them KUBEFLOW, then overlays or another params file, as config.read_params."""
    return config.read_params(ROOT / "params.yaml", [KUBEFLOW, *overlays])


def _nulls(value: Any, name: str) -> Iterator[str]:
    if value is None:
        yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nulls(item, f"{name}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nulls(item, f"{name}[{i}]")


def main(args: list[str] | None = None) -> None:
    """Compile from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.un2clip", description="Compile the pipeline.")
    parser.add_argument(
        "--params", type=Path, metavar="FILE", action="append", default=[], help="overlay on the numbers; repeatable"
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="overlay on pipelines/clusters/plain.yaml")
    parser.add_argument("--assistants", action="store_true", help="of pipelines/assistants.py, not of un2clip.py")
    parser.add_argument("--to", type=Path, metavar="FILE", help="compiled pipeline (default: the checked-in ones)")
    options = parser.parse_args(args)
    if not options.to and (options.params or options.cluster or options.assistants):
        parser.error("other options need --to: the checked-in files have the repository's numbers")
    try:
        params = read_params(*options.params)
        wanted: dict[Path, tuple[Path | None, Pipeline]] = {
            **{path: (overlay, pipeline) for path, overlay in PACKAGES.items()},
            ASSISTANTS: (None, assistants.pipeline),
        }
        if options.to:
            wanted = {options.to: (options.cluster, assistants.pipeline if options.assistants else pipeline)}
        for path, (overlay, of) in wanted.items():
            compile_to(path, params, read_cluster(overlay), of)
            print(f"compiled {path}")
    except UserError as error:
        sys.exit(f"error: {error}")
