"""Compile the pipeline, with the numbers of params.yaml, world.yaml and clusters/*.yaml as its parameters' defaults."""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfp import compiler

from pipelines import resources
from pipelines.resources import CLUSTER, Cluster, read_cluster
from pipelines.un2clip import pipeline
from un2clip import config
from un2clip.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipelines" / "un2clip.yaml"
#: The checked-in files, and the cluster that each is for.
PACKAGES = {PACKAGE: None, ROOT / "pipelines" / "un2clip-gpu.yaml": resources.CLUSTERS / "gpu.yaml"}
HEADER = (
    "# Compiled from pipelines/un2clip.py, params.yaml and world.yaml by `python -m pipelines.un2clip`; do not edit.\n"
)
#: Where dvc.yaml's stage `shapes` writes: as `images` or `benchmark_data` they mean the output of the task `shapes`.
WORLD = {"images": "data/world/images", "benchmark_data": "data/world/benchmarks"}


def arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """The run's pipeline arguments from the content of a params file; the cluster's are in `CLUSTER`.

    Raises:
        UserError: a section is missing, or holds a null, which Kubeflow cannot carry.
    """
    inputs = pipeline(read_cluster().compiled).component_spec.inputs
    keys = {name: name.removesuffix("_params") for name in inputs if name not in CLUSTER}
    missing = [key for key in keys.values() if key not in params]
    if missing:
        raise UserError(f"the numbers have no {', '.join(missing)}; the pipeline needs {', '.join(keys.values())}")
    nulls = [found for key in keys.values() for found in _nulls(params[key], key)]
    if nulls:
        raise UserError(f"{', '.join(nulls)} must not be null: a Kubeflow parameter cannot carry it; name a value")
    return {name: "" if params[key] == WORLD.get(key) else params[key] for name, key in keys.items()}


def compile_to(path: Path, params: Mapping[str, Any], cluster: Cluster) -> None:
    """Compile the pipeline with `params` as the defaults of its parameters; the same input gives the same bytes."""
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "un2clip.yaml"
        defaults = cluster.arguments | arguments(params)
        compiler.Compiler().compile(pipeline(cluster.compiled), str(raw), pipeline_parameters=defaults)
        text = raw.read_text()
    # kfp's own header prints the dict parameters in an order that changes from run to run
    path.write_text(re.sub(r"\A(#.*\n)*", lambda _: HEADER, text))


def read_params(*overlays: Path) -> dict[str, Any]:
    """The repository's numbers, with overlays (or another whole params file) laid over them; see config.read_params."""
    return config.read_params(ROOT / "params.yaml", overlays)


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
    parser.add_argument("--to", type=Path, metavar="FILE", help="compiled pipeline (default: the checked-in ones)")
    options = parser.parse_args(args)
    if not options.to and (options.params or options.cluster):
        parser.error("--params and --cluster need --to: the checked-in files have the repository's numbers")
    try:
        params = read_params(*options.params)
        for path, overlay in {options.to: options.cluster}.items() if options.to else PACKAGES.items():
            compile_to(path, params, read_cluster(overlay))
            print(f"compiled {path}")
    except UserError as error:
        sys.exit(f"error: {error}")
