"""How a pipeline run ended, written on its parent in MLflow by the run's last task, which also tidies up.

Each stage closes its own run. This closes what no stage could: the parent of a run that ended between two of
them, and the run of a stage whose pod was killed, which would count as running for ever.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from un2clip.cluster import webhook
from un2clip.cluster.secret_files import read_secrets
from un2clip.config import read_record
from un2clip.errors import reason
from un2clip.evidence.lineage import DECISION
from un2clip.evidence.summary import Decided
from un2clip.stages import STAGES
from un2clip.tracking import ERROR_TAG, store

#: Kubeflow's words -> MLflow's. A backend hands over the word of its metadata store (COMPLETE for success), the
#: local runner that of a run (SUCCEEDED). RUNNING, which a backend says of a terminated run, and before 2.17 of any run
#: with a loop, and UNKNOWN are no endings: the stages' runs decide there, and with any other word.
STATES = {
    "COMPLETE": "FINISHED",
    "CACHED": "FINISHED",
    "SUCCEEDED": "FINISHED",
    "FAILED": "FAILED",
    "CANCELED": "KILLED",
    "CANCELLED": "KILLED",
}
#: What tag un2clip.outcome says.
OUTCOMES = {"FINISHED": "succeeded", "FAILED": "failed", "KILLED": "cancelled"}
LETTERS = 1000  # of the message that is kept


def finish(state: str, message: str, *, nodes: int = 1, volume: str = "") -> None:
    """Free what the run left and record its outcome; what goes wrong is one line on stderr, for the run is over.

    Args:
        state: Kubeflow's word, such as COMPLETE, FAILED or RUNNING; see STATES.
        message: Kubeflow's, which names the task that failed; a backend leaves it empty.
        nodes: of finetune; above 1 a TrainJob may be left.
        volume: where the volume is mounted.
    """
    read_secrets()
    print(f"the run ended: {state}{': ' if message else ''}{message}")
    if nodes > 1:
        try:
            from un2clip.cluster import trainjob
            from un2clip.cluster.nodes import free

            free(trainjob.connect(), volume)
        except Exception as error:
            print(f"un2clip: nothing was freed: {reason(error)}", file=sys.stderr)
    tags, sentences = {"outcome": OUTCOMES.get(STATES.get(state, ""), ""), "message": message}, []
    if not store.is_off():
        try:
            tags = record(state, message)
            sentences = passed()
        except Exception as error:
            print(f"un2clip: MLflow did not take the outcome: {reason(error)}", file=sys.stderr)
    if why := webhook.post(webhook.message(store.run_key(), tags, sentences)):
        print(f"un2clip: the webhook was not told: {why}", file=sys.stderr)


def refused(why: str) -> None:
    """Keep on the run's parent why no stage was started, for `finish`: no stage has a run that would say it."""
    if store.is_off():
        return
    try:
        client = store.connect()
        client.set_tag(store.parent_run(client), ERROR_TAG, why[:LETTERS])
    except Exception as error:
        print(f"un2clip: MLflow did not take the refusal: {reason(error)}", file=sys.stderr)


def passed() -> list[str]:
    """The gate's sentences, if the run's challenger passed; from what `promote` kept with its run."""
    client = store.connect()
    promoted = [run for run in store.stage_runs(client, store.parent_run(client)) if run.info.run_name == STAGES[-1]]
    if not promoted or not store.has_artifacts(client, promoted[-1].info.run_id, "evidence"):
        return []
    with tempfile.TemporaryDirectory() as folder:
        kept = store.download(client, f"runs:/{promoted[-1].info.run_id}/evidence/{DECISION}", Path(folder))
        decided = read_record(Decided, kept, "promote")
    return list(decided.decision.sentences) if decided.passed else []


def record(state: str, message: str) -> dict[str, str]:
    """Close the run's parent, with tags un2clip.outcome, un2clip.failed (the stages) and un2clip.message (theirs).

    Returns:
        The tags, without un2clip.

    Raises:
        UserError: MLflow cannot be reached.
    """
    client = store.connect()
    parent = store.parent_run(client)
    latest = {run.info.run_name: run for run in store.stage_runs(client, parent)}  # a retry is a later run
    status = STATES.get(state) or judge({name: run.info.status for name, run in latest.items()})
    tags = {"outcome": OUTCOMES[status]}
    if status != "FINISHED":
        unfinished = {name: run for name, run in latest.items() if run.info.status != "FINISHED"}
        for run in unfinished.values():
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
        tags["failed"] = ", ".join(unfinished)
        refusal = client.get_run(parent).data.tags.get(ERROR_TAG, "")
        tags["message"] = (_said({name: run.data.tags for name, run in unfinished.items()}) or refusal or message)[
            :LETTERS
        ]
    for name, value in tags.items():
        if value:
            client.set_tag(parent, f"un2clip.{name}", value)
    client.set_terminated(parent, status)
    return tags


def judge(stages: Mapping[str, str]) -> str:
    """How a run ended whose word says nothing: MLflow's status, from that of the latest run of each stage.

    The last stage needs all others, and `promote` never comes from the cache, so a run that went to its end has a run
    of it. A run of assistants ends with `compare`.
    """
    if stages.get("compare" if {"assistant", "ask"} & stages.keys() else STAGES[-1]) == "FINISHED":
        return "FINISHED"
    return "FAILED" if "FAILED" in stages.values() else "KILLED"


def _said(unfinished: Mapping[str, Mapping[str, str]]) -> str:
    """Why stages failed, in their own words, from the tags of their runs; a pod that was killed left none."""
    return "; ".join(f"{name}: {tags[ERROR_TAG]}" for name, tags in unfinished.items() if ERROR_TAG in tags)
