"""Run a compiled pipeline on this machine: no cluster, the same YAML and the same stages.

    python -m pipelines.run_local [--params OVERLAY.yaml] [--runner docker] [--after RUN]

With `--after local_outputs/RUN` it is pipelines/assistants.yaml, whose language models read that run's encoders.

A task is a process, or with `--runner docker` a container of the image that a cluster would run (docs/containers.md).

Each run has its own folder below local_outputs/; `outputs.json` in it maps each benchmark and role to its
scores file, and names the report. Resources, secrets and caching mean nothing here, and a stage that fails
is not tried again.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from kfp import components, local

from components.image import IMAGE
from pipelines import assistants
from pipelines.compiling import ASSISTANTS, PACKAGE, ROOT, arguments, read_params
from pipelines.un2clip import pipeline as un2clip
from un2clip.errors import UserError
from un2clip.evidence.scores import load_scores
from un2clip.tracking import store

#: What a container is told of this process: where MLflow is, which run this is, how many threads.
TOLD = ("MLFLOW_", "UN2CLIP_", "OMP_")


def run(
    folder: Path, overlay: Path | None = None, runner: str = "subprocess", after: Path | None = None
) -> dict[str, Any]:
    """Run pipelines/un2clip.yaml, or assistants.yaml, with its artifacts below `folder`.

    Args:
        folder: a folder of this run alone.
        overlay: params file laid over the repository's numbers; without one the numbers compiled into the YAML count.
        runner: subprocess or docker.
        after: folder of an earlier run, whose two encoders assistants read.

    Returns:
        What `find_outputs` says.

    Raises:
        UserError: the overlay is unfit, or a stage failed; its own message is in the log above.
    """
    package, of = (ASSISTANTS, assistants.pipeline) if after else (PACKAGE, un2clip)
    changed = arguments(read_params(overlay), of) if overlay else {}
    execute(package, folder, changed | (_addresses(after) if after else {}), runner=runner)
    outputs = find_outputs(folder)
    (folder / "outputs.json").write_text(json.dumps(outputs, indent=1) + "\n")
    return outputs


def execute(
    package: Path, folder: Path, changed: dict[str, Any], *, runner: str = "subprocess", cache: Path | None = None
) -> None:
    """Run a compiled pipeline, task by task.

    Args:
        package: the compiled YAML.
        folder: a folder of this run alone, for its artifacts.
        changed: parameters that are not those compiled in.
        runner: subprocess or docker.
        cache: folder that remembers what tasks made of which inputs; what was made so in an earlier run stays in that
            run's folder and is used from there.

    Raises:
        UserError: a stage failed; its own message is in the log above.
    """
    pipeline = components.load_component_from_file(str(package))
    graph = pipeline.component_spec.implementation.graph
    for component in [graph.root, *graph.components.values()]:
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
    for executor in graph.deployment_spec["executors"].values():
        if "container" in executor:  # this runner would look for an image called {{$.inputs.parameters...
            executor["container"]["image"] = IMAGE
    os.environ.setdefault("UN2CLIP_RUN", f"kfp-local-{folder.name}")  # as the pod's label does on a cluster
    tasks = containers() if runner == "docker" else local.SubprocessRunner(use_venv=False)
    local.init(tasks, pipeline_root=str(folder), enable_caching=cache is not None, cache_root=cache and str(cache))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one a task: its image and resources mean nothing here
        try:
            pipeline(**changed)
        except RuntimeError as error:
            raise UserError(f"{error} Its artifacts so far: {folder}") from None


def containers() -> local.DockerRunner:
    """Containers of this user, so that the artifacts are theirs, in this machine's network: 127.0.0.1 is this one's.

    Raises:
        UserError: no MLflow server is named, and what each container tracks in a file of its own would go with it.
    """
    tracked = not store.is_off()
    if tracked and not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        raise UserError(
            "containers need MLFLOW_TRACKING_URI=http://... of a server, since their own mlflow.db goes with them; "
            "or set UN2CLIP_TRACKING=off"
        )
    return local.DockerRunner(
        entrypoint=[""],  # the image's is `un2clip`; a component brings a whole command, and this runner keeps both
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",
        shm_size="2g",
        environment={name: value for name, value in os.environ.items() if name.startswith(TOLD)},
    )


def find_outputs(folder: Path) -> dict[str, Any]:
    """Where a run's results lie: {"report": page, "decision": file, "scores": {benchmark: {role: file}}}.

    A run of assistants has a report alone, and "decision" is empty.
    """
    scores: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("scores/*.json")):
        result = load_scores(path)
        scores.setdefault(result.benchmark, {})[result.role] = str(path)
    return {
        "report": str(next(folder.rglob("report/index.html"))),
        "decision": str(next(folder.rglob("decision/decision.json"), "")),
        "scores": scores,
    }


def table(outputs: dict[str, Any]) -> str:
    """Where a run's results lie, a line each."""
    rows = [f"report    {outputs['report']}", f"decision  {outputs['decision']}"]
    for benchmark, files in outputs["scores"].items():
        rows += [f"scores    {benchmark:<16} {role:<10} {file}" for role, file in files.items()]
    return "\n".join(rows) + "\n"


def _addresses(run: Path) -> dict[str, str]:
    """The parameters of assistants.yaml that say where an earlier run left the two encoders.

    Raises:
        UserError: it left none.
    """
    found = {
        "backbones_uri": next(run.rglob("backbones/clip"), None),
        "encoder_uri": next(run.rglob("encoder/lineage.json"), None),
    }
    if missing := [name for name, path in found.items() if path is None]:
        raise UserError(f"{run} has no {missing[0].removesuffix('_uri')}; name the folder of a finished run")
    return {name: str(path.parent.resolve()) for name, path in found.items() if path is not None}


def main(args: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.run_local", description="Run the pipeline on this machine."
    )
    parser.add_argument("--params", type=Path, metavar="FILE", help="overlay on the numbers")
    parser.add_argument(
        "--root", type=Path, default=ROOT / "local_outputs", help="parent of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--runner", choices=["subprocess", "docker"], default="subprocess", help="what a task is (default: %(default)s)"
    )
    parser.add_argument("--after", type=Path, metavar="RUN", help="assistants, which read the encoders of this run")
    options = parser.parse_args(args)
    folder = options.root / time.strftime("%Y-%m-%d-%H-%M-%S")
    try:
        outputs = run(folder, options.params, options.runner, options.after)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(table(outputs))  # kfp's loop leaves print() indenting


if __name__ == "__main__":
    main()
