"""What the hub wants of a model: results in its own format, and the files in one commit."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, EvalResultEntry, HfApi, eval_result_entries_to_yaml

from un2clip.errors import UserError, raise_stop, reason
from un2clip.evidence.report import Comparison, interval, number
from un2clip.models.publishing.layout import CUSTODY, EVALS, SIGNATURE, list_files
from un2clip.sources.catalogue import catalogue

#: BENCHMARK=ORG/SET:TASK@COMMIT, the last two if wanted.
DATASET = re.compile(r"(?P<benchmark>[^=]+)=(?P<id>[\w.-]+/[\w.-]+)(:(?P<task>[\w.-]+))?(@(?P<revision>[0-9a-f]{40}))?")


def named_datasets(given: Iterable[str]) -> dict[str, tuple[str, str, str | None]]:
    """Benchmark -> hub id of its data, task, commit, as the user says.

    Raises:
        UserError: one is not of that form.
    """
    found = {}
    for text in given:
        if not (match := DATASET.fullmatch(text)):
            raise UserError(f"--dataset must be BENCHMARK=ORG/SET, with :TASK and @COMMIT if wanted, got {text!r}")
        found[match["benchmark"]] = (match["id"], match["task"] or "default", match["revision"])
    return found


def write_evals(
    comparisons: Iterable[Comparison], folder: Path, datasets: dict[str, tuple[str, str, str | None]]
) -> tuple[list[str], list[str]]:
    """Write `.eval_results/BENCHMARK.yaml`; benchmarks that have one, and those whose data have no name on the hub.

    A benchmark's data have the name that the user says, or the catalogue's where their hash is the one in there: the
    laptop world's pairs are called mmvp_vlm as well, and are not it.

    Raises:
        UserError: a data set is named for a benchmark that has no scores.
    """
    known = {
        entry.data_sha256: (entry.location, "default", entry.revision or None)
        for entry in catalogue().values()
        if entry.kind == "hub" and entry.data_sha256
    }
    scored = {each.benchmark: each for each in comparisons}
    if unknown := sorted(datasets.keys() - scored.keys()):
        raise UserError(f"--dataset names {unknown[0]}, which has no scores; there are {', '.join(scored)}")
    without = []
    for name, each in scored.items():
        dataset = datasets.get(name) or known.get(each.data_sha256)
        if dataset is None:
            without.append(name)
            continue
        whole = each.whole
        notes = (
            f"{each.protocol}; {whole.difference.n} samples; before {number(whole.reference, each.unit)}, change "
            f"{number(whole.difference.mean, each.unit, signed=True)} ({interval(whole.difference, each.unit)}); data "
            f"{each.data_sha256[:12]}"
        )
        entry = EvalResultEntry(
            dataset_id=dataset[0], task_id=dataset[1], dataset_revision=dataset[2], value=whole.tuned, notes=notes
        )
        (folder / EVALS).mkdir(exist_ok=True)
        (folder / EVALS / f"{name}.yaml").write_text(
            yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        )
    return [name for name in scored if name not in without], without


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Put all files of a folder into a repository of the hub, in one commit; return the commit's address.

    The repository is made where it is not there. The endpoint and the token are the hub client's own (HF_ENDPOINT,
    HF_TOKEN or `hf auth login`).

    Raises:
        UserError: the hub does not take it.
    """
    names = [*list_files(folder), *(name for name in (CUSTODY, SIGNATURE) if (folder / name).is_file())]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
        done = api.create_commit(repository, operations, commit_message="An encoder and its evidence")
    except Exception as error:  # of the client, of the network
        raise_stop(error)
        raise UserError(f"the hub did not take {repository}: {reason(error)}") from None
    return str(done.commit_url)
