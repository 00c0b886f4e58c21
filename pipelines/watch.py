"""What --watch shows: the state of each of the pipeline's tasks as it changes, out of all that Kubeflow lists.

Kubeflow lists every node of Argo's: with its own default retries each one twice (`name` and the attempt `name(0)`), a
driver before every task, an `executor` below it, and nodes for the loop, its turns and the exit handler.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
UNDECIDED = ("PENDING", "RUNNING", "RUNTIME_STATE_UNSPECIFIED")  # a task's state that cannot be when its run has ended
WATCH_SECONDS = float(os.environ.get("KFP_WATCH_SECONDS", "5"))
PATIENCE = 60  # answers in a row that may fail while a run is watched
LOOPED = {"evaluate": "benchmarks"}  # task within a loop -> the parameter that this goes over
ATTEMPT = re.compile(r"\(\d+\)$")  # name(0): one attempt at the node `name`
ITERATION = re.compile(r"\((\d+):[^()]*\)$")  # name(1:item): a turn of the loop
OWN = re.compile(r"-driver$|^(root|executor|iteration\b.*|(exit-handler|for-loop)-\d+)$")


def show_run(client: Any, run_id: str, watch: bool, output_format: str) -> None:
    """Show a run; with `watch` also each task's states until it ends. The exit status is 0 if it succeeded.

    It takes the place of kfp.cli.run.display_run, which `run create --watch` and `run get --watch` call.
    """
    from kfp.cli import output

    run = client.get_run(run_id)
    output.print_output(run, output.ModelType.RUN, output_format)
    if not watch:
        return
    seen: dict[str, str] = {}
    try:
        while True:
            _show_tasks(run, seen)
            if run.state in ENDED:
                break
            time.sleep(WATCH_SECONDS)
            run = _again(client, run_id)
    except KeyboardInterrupt:
        sys.exit(f"\nkfp: no longer watching, and the run goes on; to watch it again: kfp run get --watch {run_id}")
    if any(task.state in UNDECIDED for task in _tasks(run)):
        print("Kubeflow lists no more tasks: above 1 MiB of status it reads none; MLflow has a run for each stage")
    print(f"run {run_id}: {run.state}")
    if run.state != "SUCCEEDED":
        sys.exit(1)


def _show_tasks(run: Any, seen: dict[str, str]) -> None:
    """Print each task whose state is another than the one seen; what Kubeflow runs for itself is left out."""
    tasks = _tasks(run)
    above = {child.task_id or child.pod_name: task for task in tasks for child in task.child_tasks or []}
    for task in tasks:
        name = _name(task, above, run)
        if name and task.state and seen.get(task.task_id) != task.state:
            seen[task.task_id] = task.state
            error = f": {task.error.message}" if task.error and task.error.message else ""
            print(f"{time.strftime('%H:%M:%S')}  {name:<20} {task.state}{error}", flush=True)


def _tasks(run: Any) -> list[Any]:
    return (run.run_details and run.run_details.task_details) or []


def _name(task: Any, above: Mapping[str, Any], run: Any) -> str:
    """The task's name, with the benchmark if it is one of a loop; "" for a node that is none of the pipeline's tasks.

    Args:
        task: a node of Argo's, as Kubeflow lists it.
        above: the node above each, by its child's id, which is Argo's: Kubeflow calls it the pod's name.
        run: whose arguments, or whose pipeline's defaults, are looped over.
    """
    name = task.display_name or ""
    looped = LOOPED.get(ITERATION.sub("", name), "")
    if ATTEMPT.search(name) or OWN.search(ITERATION.sub("", name)):
        return ""
    node, met = task, set()
    # only for a task of a loop: Argo counts as below a node also what waits for it, so after the loop comes "below" too
    while looped and node and node.task_id not in met:
        met.add(node.task_id)
        if turn := ITERATION.search(node.display_name or ""):
            items, at = _items(run, looped), int(turn[1])
            return f"{ITERATION.sub('', name)} {items[at] if at < len(items) else at}"
        node = above.get(node.pod_name) or above.get(node.task_id)
    return name


def _items(run: Any, name: str) -> list[Any]:
    """What a loop over this parameter goes over."""
    given = (run.runtime_config and run.runtime_config.parameters) or {}
    if name in given:
        return list(given[name])
    spec = run.pipeline_spec or {}
    root = spec.get("pipeline_spec", spec).get("root", {})
    return list(root.get("inputDefinitions", {}).get("parameters", {}).get(name, {}).get("defaultValue", []))


def _again(client: Any, run_id: str) -> Any:
    """The run as it is now. A server that does not answer for a while is no reason to stop watching."""
    for _ in range(PATIENCE):
        try:
            return client.get_run(run_id)
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            time.sleep(WATCH_SECONDS)
    sys.exit(f"kfp: no answer about run {run_id} ({problem}); to watch it again: kfp run get --watch {run_id}")
