"""Runs that a killed stage left open: who starts next closes those whose process is proved to be gone."""

import os
from typing import TYPE_CHECKING

from un2clip import processes
from un2clip.tracking.patience import POD
from un2clip.tracking.store import PARENT_TAG, experiment, stage_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PROCESS_TAG = "un2clip.process"
ERROR_TAG = "un2clip.error"  # of a stage's run that did not finish: why
GONE = "its process is gone, and left no word of how it ended"
EARLIER = "an earlier attempt of this task, which Kubeflow started again"


def close_gone(client: "MlflowClient", parent_id: str, name: str) -> None:
    """Close as KILLED what is open of stages that were killed.

    These are runs whose process was on this boot of this machine and is no more; and in a pod those of the same stage
    below the same parent, for Kubeflow starts a task again only when its attempt before has ended.

    Args:
        parent_id: of the stage that starts, whose own run is not made yet.
        name: of its run.
    """
    place = processes.here().place
    wanted = f"attributes.status = 'RUNNING' AND tags.`{PROCESS_TAG}` LIKE '{place}%'"
    for run in client.search_runs([experiment(client)], wanted):
        process = processes.parse(run.data.tags[PROCESS_TAG])
        if process is not None and process.gone:
            _close(client, run, GONE)
    if POD in os.environ and "UN2CLIP_RUN" in os.environ:
        for run in stage_runs(client, parent_id):
            if run.info.status == "RUNNING" and run.info.run_name == name:
                _close(client, run, EARLIER)


def settle(client: "MlflowClient", parent_id: str) -> None:
    """Set a parent's state from the latest run of each stage: several may run at the same time."""
    states = {run.info.run_name: run.info.status for run in stage_runs(client, parent_id)}.values()
    if "RUNNING" not in states:
        worst = next((state for state in ("FAILED", "KILLED") if state in states), "FINISHED")
        client.set_terminated(parent_id, worst)


def _close(client: "MlflowClient", run: "Run", why: str) -> None:
    client.set_tag(run.info.run_id, ERROR_TAG, why)
    client.set_terminated(run.info.run_id, "KILLED")
    parent = run.data.tags.get("mlflow.parentRunId", "")
    if parent and PARENT_TAG in client.get_run(parent).data.tags:
        settle(client, parent)
