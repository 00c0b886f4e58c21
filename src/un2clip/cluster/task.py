"""A stage as a task of Kubeflow: what every component does beyond its signature, said once.

Kubeflow repeats a component's source in seven nodes or more of each task's status, so its body is one call of `run`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from un2clip.cluster.artifacts import DESCRIPTIONS, PAGES, describe, scores_of
from un2clip.cluster.secret_files import read_secrets
from un2clip.stages import run_stage

#: Of the stages that read a folder on the volume, the argument whose place `folder` takes where it is not empty.
ON_VOLUME = {"ingest": "images", "evaluate": "benchmarks", "assistant": "instructions", "ask": "benchmarks"}


def run(stage: str, given: Mapping[str, Any], output: str = "") -> None:
    """Run a stage by the arguments of its component.

    Args:
        stage: its name.
        given: the component's arguments: the stage's own, with artifacts of kfp where it has paths, and those that
            components/README.md lists: folder, version, metrics, page, diffusion_loss.
        output: name of the output of which metadata, metrics and page tell (`cluster.artifacts`); "" for none.
    """
    read_secrets()
    names = {key: _place(value) for key, value in given.items()}
    params, metrics, page = names.pop("params"), names.pop("metrics", None), names.pop("page", None)
    names.pop("version", None)  # for the cache's key alone
    if folder := names.pop("folder", ""):
        names[ON_VOLUME[stage]] = folder
    if "diffusion_loss" in names:
        names["scores"] = [names.pop("diffusion_loss"), *names["scores"]]
    run_stage(stage, params, **names)
    if output in DESCRIPTIONS:
        given[output].metadata.update(describe(output, names[output]))
    if metrics:
        for name, value in scores_of(names[output]).items():
            given["metrics"].log_metric(name, value)
        # without a file the task never hits the cache
        Path(metrics).write_text(json.dumps(given["metrics"].metadata))
    if page:
        Path(page).write_text(PAGES[output](names[output]))


def _place(value: Any) -> Any:
    """The path of an artifact, or of each of a list of them; any other value is itself."""
    if isinstance(value, list) and value and hasattr(value[0], "path"):
        return [each.path for each in value]
    return getattr(value, "path", value)
