"""How a pipeline run ended, written on its parent in MLflow by the run's last task, which also tidies up.

Each stage closes its own run. This closes what no stage could: the parent of a run that ended between two of
them, and the run of a stage whose pod was killed, which would count as running for ever.
"""

import sys

from un2clip.errors import reason
from un2clip.tracking import store

#: Kubeflow's states -> MLflow's.
STATES = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
LETTERS = 1000  # of the message that is kept


def finish(state: str, message: str, *, nodes: int = 1, volume: str = "") -> None:
    """Free what the run left and record its outcome; what goes wrong is one line on stderr, for the run is over.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED.
        message: Kubeflow's, which names the task that failed; may be empty.
        nodes: of finetune; above 1 a TrainJob may be left.
        volume: where the volume is mounted.
    """
    print(f"the run ended: {state}{': ' if message else ''}{message}")
    if nodes > 1:
        try:
            from un2clip.cluster import trainjob
            from un2clip.cluster.nodes import free

            free(trainjob.connect(), volume)
        except Exception as error:
            print(f"un2clip: nothing was freed: {reason(error)}", file=sys.stderr)
    if store.is_off():
        return
    try:
        record(state, message)
    except Exception as error:
        print(f"un2clip: MLflow did not take the outcome: {reason(error)}", file=sys.stderr)


def record(state: str, message: str) -> None:
    """Close the run's parent, with tags un2clip.outcome, un2clip.failed (the stages) and un2clip.message.

    Raises:
        UserError: MLflow cannot be reached.
    """
    client = store.connect()
    parent = store.parent_run(client)
    latest = {run.info.run_name: run.info for run in store.stage_runs(client, parent)}  # a retry is a later run
    tags = {"outcome": state.lower()}
    if state != "SUCCEEDED":
        for info in latest.values():
            if info.status == "RUNNING":
                client.set_terminated(info.run_id, "KILLED")
        tags["failed"] = ", ".join(name for name, info in latest.items() if info.status != "FINISHED")
        tags["message"] = message[:LETTERS]
    for name, value in tags.items():
        if value:
            client.set_tag(parent, f"un2clip.{name}", value)
    client.set_terminated(parent, STATES.get(state, "FAILED"))
