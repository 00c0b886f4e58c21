"""Stage `ask`: two assistants of one language model, which read two encoders, answer the questions of benchmarks."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from un2clip.config import read_record
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Ask
from un2clip.evaluation.mllm.asking import Opened, ask_all, check_data, open_assistant, print_asked
from un2clip.evidence.languages import AssistantLineage, save_asked
from un2clip.evidence.lineage import LINEAGE
from un2clip.evidence.scores import Role

ANSWERS, COLUMNS = "answers.jsonl", "columns.json"


def ask(
    params: Ask,
    *,
    questions: list[str],
    device: str,
    checkpoints: str,
    benchmarks: Path,
    reference: Path,
    tuned: Path,
    scores: Path,
) -> None:
    """Write scores/BENCHMARK/ROLE/asked.json (with the language model's seed), columns.json and answers.jsonl.

    Asking that was cut off goes on with the first question that has no answer, where there is a folder of checkpoints.

    Args:
        questions: the benchmarks to ask: files of evaluation/benchmarks/ that measure an mllm, or `file-dataset`.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph for answers of asking that is not finished; "" for none.
        benchmarks: folder with one folder of data a benchmark.
        reference: folder of the assistant, as stage `assistant` writes it, that reads the untouched encoder.
        tuned: of the one that reads the tuned encoder; its language model has the same seed.
        scores: folder of what is written.

    Raises:
        UserError: models or data are not as they must be.
    """
    assistants: dict[Role, Path] = {"reference": reference, "tuned": tuned}
    lineages = {role: _lineage(folder) for role, folder in assistants.items()}
    seeds = {role: lineage.seed for role, lineage in lineages.items()}
    if seeds["reference"] != seeds["tuned"]:
        raise UserError(
            f"the language models have other seeds, {seeds['reference']} (reference) and {seeds['tuned']} (tuned), and "
            "would differ by themselves; train one with the other's seed"
        )
    data = check_questions(questions, benchmarks)
    for role, folder in assistants.items():
        ask_assistant(
            params, role=role, method="reference" if role == "reference" else lineages[role].method, assistant=folder,
            benchmarks=benchmarks, data=data, device=device, checkpoints=checkpoints, scores=scores,
        )  # fmt: skip


def check_questions(questions: Sequence[str], benchmarks: Path) -> dict[str, str]:
    """Benchmark -> hash of its data, of all of them before a model is loaded.

    Raises:
        UserError: one measures no mllm, or its data are not there.
    """
    return {name: _check(name, benchmarks / name) for name in questions}


def ask_assistant(
    params: Ask, *, role: Role, method: str, assistant: Path, benchmarks: Path, data: dict[str, str], device: str,
    checkpoints: str, scores: Path,
) -> None:  # fmt: skip
    """Ask one assistant all benchmarks of `data`, as `check_questions` gives it; the rest is as of `ask`."""
    lineage = _lineage(assistant)
    opened = open_assistant(params, assistant, device)
    for name, sha256 in data.items():
        folder = scores / name / role
        folder.mkdir(parents=True, exist_ok=True)
        journal = _journal(opened, checkpoints, name, sha256) if checkpoints else folder / ANSWERS
        asked = ask_all(
            opened, benchmark=name, data=benchmarks / name, sha256=sha256, journal=journal, role=role, method=method
        )
        if journal != folder / ANSWERS:
            shutil.move(journal, folder / ANSWERS)
        asked.write_columns(folder / COLUMNS)
        save_asked(asked.scores, lineage.seed, lineage.parents["encoder"], folder)
        print_asked(asked)


def _lineage(assistant: Path) -> AssistantLineage:
    if assistant.is_dir() and not (assistant / LINEAGE).is_file():
        raise UserError(
            f"{assistant} has no {LINEAGE}, so `assistant` did not train it; "
            f"`un2clip ask --assistant={assistant} --benchmark=...` asks any LLaVA"
        )
    return read_record(AssistantLineage, assistant / LINEAGE, "assistant")


def _check(benchmark: str, data: Path) -> str:
    if not data.is_dir():
        raise UserError(
            f"no benchmark data at {data}; `un2clip fetch {benchmark}` gets it, and the laptop world has it where "
            "shapes.questions.of_each of world.yaml is above 0"
        )
    return check_data(benchmark, data)


def _journal(opened: Opened, checkpoints: str, benchmark: str, data_sha256: str) -> Path:
    """A file of this very asking: its name changes with model, data and numbers."""
    said = repr([opened.numbers, opened.sha256, benchmark, data_sha256])
    return Path(checkpoints) / "ask" / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.jsonl"
