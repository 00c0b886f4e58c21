"""Stage `ask`: one assistant answers the questions of benchmarks; every answer is kept."""

import hashlib
import shutil
from pathlib import Path

from un2clip.config import lookup
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Ask
from un2clip.evaluation.mllm.asking import Opened, ask_all, check_data, open_assistant, print_asked
from un2clip.evidence.languages import save_asked
from un2clip.evidence.scores import ROLES

ANSWERS, COLUMNS = "answers.jsonl", "columns.json"


def ask(
    params: Ask,
    *,
    questions: list[str],
    role: str,
    language_seed: int,
    method: str,
    device: str,
    checkpoints: str,
    benchmarks: Path,
    assistant: Path,
    scores: Path,
) -> None:
    """Write scores/BENCHMARK/asked.json (with the language model's seed), columns.json and answers.jsonl.

    Asking that was cut off goes on with the first question that has no answer, where there is a folder of checkpoints.

    Args:
        questions: the benchmarks to ask: files of evaluation/benchmarks/ that measure an mllm, or `file-dataset`.
        role: whose patch tokens the assistant reads: reference or tuned.
        language_seed: of the assistant's language model.
        method: row of the method table that made the tuned encoder.
        device: auto, cpu or cuda.
        checkpoints: folder outside of the graph for answers of asking that is not finished; "" for none.
        benchmarks: folder with one folder of data a benchmark.
        assistant: folder of a LLaVA as transformers saves it.
        scores: folder of what is written.

    Raises:
        UserError: model or data are not as they must be.
    """
    known = lookup({each: each for each in ROLES}, role, "role")
    hashes = {name: _check(name, benchmarks / name) for name in questions}
    opened = open_assistant(params, assistant, device)
    for name, sha256 in hashes.items():
        folder = scores / name
        folder.mkdir(parents=True, exist_ok=True)
        journal = _journal(opened, checkpoints, name, sha256) if checkpoints else folder / ANSWERS
        asked = ask_all(
            opened, benchmark=name, data=benchmarks / name, sha256=sha256, journal=journal, role=known,
            method="reference" if role == "reference" else method,
        )  # fmt: skip
        if journal != folder / ANSWERS:
            shutil.move(journal, folder / ANSWERS)
        asked.write_columns(folder / COLUMNS)
        save_asked(asked.scores, language_seed, folder)
        print_asked(asked)


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
