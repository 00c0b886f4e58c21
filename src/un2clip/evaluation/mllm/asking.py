"""Ask a model a whole set, keep every answer as soon as it is there, and go on where it stopped."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from un2clip.config import build
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evaluation.measuring import Ask, get_benchmark
from un2clip.evaluation.mllm.llava import Llava, load_llava
from un2clip.evaluation.mllm.questions import Choose, Question
from un2clip.evaluation.readers import data_sha256
from un2clip.evidence.report import compare_scores
from un2clip.evidence.scores import ROLES, Role, Scores, load_scores, mismatch
from un2clip.evidence.table import print_table
from un2clip.evidence.units import get_unit
from un2clip.files.texts import parse_json, read_text
from un2clip.hashes import folder_sha256


class Recorded:
    """An assistant whose answers are written down, a line each, behind a first line on what was asked of whom.

    Attributes:
        protocol: of the model, and how many questions were asked at once.
    """

    def __init__(self, llava: Llava, journal: Path, about: dict[str, str]) -> None:
        self.llava, self.journal, self.about, self.protocol = llava, journal, about, llava.protocol
        self.asked: Sequence[Question] = ()

    def ask(self, questions: Sequence[Question], *, batch_size: int, choose: Choose = "generated") -> list[str]:
        """The answers, in order; those that the journal has are not asked again.

        Raises:
            UserError: the journal is about another model, other questions or another way to ask.
        """
        self.protocol = f"{self.llava.protocol}, {batch_size} at once"
        self.asked = questions
        known = self._known({**self.about, "asked": f"{choose}; {self.protocol}", "questions": _sha256(questions)})
        left = [question for question in questions if question.id not in known]
        with (
            self.journal.open("a", encoding="utf-8") as file,
            tqdm(total=len(questions), initial=len(known), unit="question", mininterval=1, desc="ask") as progress,
        ):
            for start in range(0, len(left), batch_size):
                batch = left[start : start + batch_size]
                if choose == "likelihood":
                    answers = [self.llava.likeliest(question) for question in batch]
                else:
                    answers = self.llava.generate(batch)
                for question, answer in zip(batch, answers, strict=True):
                    known[question.id] = answer
                    file.write(json.dumps({"id": question.id, "answer": answer}) + "\n")  # ASCII, wherever it is cut
                file.flush()
                progress.update(len(batch))
        return [known[question.id] for question in questions]

    def _known(self, about: dict[str, str]) -> dict[str, str]:
        """What the journal has already; a line that was cut off is taken out of it, and a new journal is begun."""
        *whole, cut = read_text(self.journal).split("\n") if self.journal.is_file() else [""]
        if not whole:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self.journal.write_text(json.dumps(about) + "\n", encoding="utf-8")
            return {}
        try:
            head, *answered = map(self._parse, whole)
            found = {line["id"]: line["answer"] for line in answered}
            differing = [name for name, value in about.items() if head.get(name) != value]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.journal} is no record of answers; move it away, or choose another folder") from None
        if differing:
            raise UserError(
                f"{self.journal} has answers of another run (its {', '.join(differing)} differ); "
                "move it away, or choose another folder"
            )
        if cut:
            os.truncate(self.journal, len("\n".join([*whole, ""]).encode()))
        return found

    def _parse(self, line: str) -> Any:
        return parse_json(line, str(self.journal))

    def finish(self, result: BenchmarkResult) -> None:
        """Write down beside each answer what was asked, what was understood, and whether it is right."""
        head, *lines = read_text(self.journal).rstrip("\n").split("\n")
        answers = {line["id"]: line["answer"] for line in map(self._parse, lines)}
        partial, texts = self.journal.with_suffix(".partial"), [head]
        for question, item, understood in zip(self.asked, result.items, result.understood, strict=True):
            texts.append(json.dumps(
                {"id": question.id, "type": question.type, "text": question.text, "options": dict(question.options),
                 "expected": question.expected, "answer": answers[question.id], "understood": understood,
                 "right": item.value == 1.0}, ensure_ascii=False))  # fmt: skip
        partial.write_text("\n".join(texts) + "\n", encoding="utf-8")
        os.replace(partial, self.journal)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one assistant reached on one benchmark, and the scores by the names of published tables."""

    scores: Scores
    result: BenchmarkResult

    def write_columns(self, path: Path) -> None:
        path.write_text(json.dumps(dict(self.result.columns), indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An assistant ready to be asked, how, and the hash of its folder."""

    llava: Llava
    numbers: Ask
    sha256: str


def open_assistant(numbers: Ask, folder: Path, device: str) -> Opened:
    """Load a LLaVA as transformers saves it.

    Raises:
        UserError: it is none, or cannot be asked.
    """
    llava = load_llava(folder, pick_device(device), dtype=numbers.dtype, max_new_tokens=numbers.max_new_tokens)
    return Opened(llava=llava, numbers=numbers, sha256=folder_sha256(folder))


def check_data(benchmark: str, data: Path) -> str:
    """The hash of a benchmark's data, before a model is loaded.

    Raises:
        UserError: no mllm is measured by it, or there are no data.
    """
    get_benchmark(benchmark, "mllm")
    return data_sha256(data)


def ask_all(
    opened: Opened, *, benchmark: str, data: Path, sha256: str, journal: Path, role: Role, method: str
) -> Asked:
    """Ask every question of a benchmark that the journal has no answer to.

    Args:
        benchmark: a file of benchmarks/ that measures an mllm, or `file-dataset`.
        data: the benchmark's folder.
        sha256: of the data, from `check_data`.
        journal: file of the answers, a line each.
        role: reference or tuned.
        method: row of the method table that made its encoder, for the scores.

    Raises:
        UserError: the data are not as they must be, or the journal has answers of another run.
    """
    asker = Recorded(opened.llava, journal, {"benchmark": benchmark, "data": sha256, "assistant": opened.sha256})
    result = get_benchmark(benchmark, "mllm").run(asker, data, opened.numbers)
    asker.finish(result)
    scores = Scores(
        benchmark=benchmark, role=role, method=method, unit=result.unit, data_sha256=sha256, items=result.items,
        protocol=f"{result.protocol}; {asker.protocol}", encoder_sha256=opened.sha256,
    )  # fmt: skip
    return Asked(scores=scores, result=result)


def ask(
    params: dict[str, Any], *, assistant: Path, benchmark: str, data: Path, to: Path, role: Role, method: str
) -> None:
    """The command: ask, and write to/ROLE.json (scores), ROLE.columns.json and ROLE.answers.jsonl.

    Where the other role's scores lie there too, the paired difference is printed.

    Args:
        params: the numbers; `ask`, `device`, `compare` and `seed` are read.
        assistant: folder of the model.
        benchmark, data, role, method: as of `ask_all`.
        to: folder of what is written.

    Raises:
        UserError: model or data are not as they must be, or answers of another run lie there.
    """
    numbers = build(Ask, params["ask"], "ask")
    sha256 = check_data(benchmark, data)
    opened = open_assistant(numbers, assistant, params["device"])
    journal = to / f"{role}.answers.jsonl"
    asked = ask_all(opened, benchmark=benchmark, data=data, sha256=sha256, journal=journal, role=role, method=method)
    asked.scores.save(to / f"{role}.json")
    asked.write_columns(to / f"{role}.columns.json")
    print_asked(asked)
    _compare(to, params)


def print_asked(asked: Asked) -> None:
    """The score, the columns, and how many answers were not understood."""
    scores, result = asked.scores, asked.result
    digits = get_unit(scores.unit).digits
    print(f"{scores.benchmark}: {scores.role} {scores.score:.{digits}f} {scores.unit} of {scores.n} questions")
    print("\n".join(f"  {name:<32} {value:.{digits}f}" for name, value in result.columns.items()))
    if lost := sum(not words for words in result.understood):
        print(f"{lost} of {scores.n} answers name none of the options, and count as wrong; look at answers.jsonl")


def _compare(to: Path, params: dict[str, Any]) -> None:
    """The paired difference of the two roles, where both are there and may be compared."""
    if not all((to / f"{role}.json").is_file() for role in ROLES):
        return
    reference, tuned = (load_scores(to / f"{role}.json") for role in ROLES)
    if why := mismatch(reference, tuned):
        print(f"reference and tuned are not compared: {why}")
        return
    how = params["compare"]
    comparison = compare_scores(reference, tuned, seed=params["seed"], **how)
    print_table([comparison], method=tuned.method, confidence=how["confidence"], power=how["power"])


def _sha256(questions: Sequence[Question]) -> str:
    texts = [[question.id, question.text, *question.options] for question in questions]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
