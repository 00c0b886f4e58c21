"""What lmms-eval says of answers in every wording: makes tests/oracles/lmms_verdicts.json, which the tests read.

It is run by hand, in an environment of its own, since lmms-eval brings 58 packages that this project has not:

    python -m venv ENV
    ENV/bin/pip install --no-deps lmms-eval==0.7.3
    ENV/bin/pip install loguru numpy pandas pyyaml requests tqdm
    ENV/bin/python tests/oracles/lmms_verdicts.py

Nothing of lmms-eval is written anew: the `utils.py` of its tasks are loaded by their paths, because importing the
package of all tasks needs far more, and the one metric that a task names is taken out of its file.
"""

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import random
import re
import string
import sys
import types
from pathlib import Path

import numpy as np

OUT = Path(__file__).with_suffix(".json")
#: L is the letter meant, M the next one, t the text of the option meant.
LETTERED = (
    "{L}", "{l}", "({L})", "({l})", "{L}.", "{l}.", "{L}...", " {L} ", "{L})", "({L}).", "{L}:", "{L},",
    "{L}\n", "**{L}**",
    "{L}. {t}", "{L}) {t}", "({L}) {t}", "{L}: {t}", "{L} {t}", "{L}, because it is so", "{t}", "{T}",
    "{t}.", "The answer is {L}", "The answer is {L}.", "The answer is ({L}).", "the answer is {l}", "Answer: {L}",
    "Answer: ({L})", "ANSWER: {L}", "The correct option is {L}.", "Option {L}", "It is ({L}).", "I think {t}",
    "{L} or {M}",
    "{L}/{M}", "{L} and {M}", "not {L}", "", ".", "a photo", "an apple", "A photo", "I do not know", "Both",
    "None", "D'oh", "7",
)  # fmt: skip
YES_NO = (
    "Yes", "No", "yes", "no", "YES", "NO", "Yes.", "No.", "yes...", "no...", " Yes ", " no ", "Yes, x", "No, x",
    "Yes, there is.", "No, there is not.", "yes\n", "no\n", "**Yes**", "**No**", "There is a dog.", "There is no dog.",
    "It is not there.", "The answer is yes.", "The answer is no.", "Yes and no", "No and yes", "not really", "nope",
    "nothing", "Noon", "yesterday", "yeah", "y", "n", "Y.", "N.", "", ".", "maybe", "Is it? Yes", "A dog. No",
)  # fmt: skip
WORDS = (
    "{t}", "{T}", "{c}",
    "{t}.", "{t}...", " {t} ", "{t}\n", "a {t}", "The {t}.", "{t}!", "{t}, really", "\"{t}\"", "{t}s",
    "", "couch",
)  # fmt: skip
CHOICES = {
    2: ["left of the chair", "right of the chair"],
    4: ["a dog", "a red cat", "two birds", "no animal"],
    5: ["1", "2", "3", "4", "5"],
}


@functools.cache
def tasks_utils(task: str, file: str = "utils") -> types.ModuleType:
    """A module of a task, by its path."""
    spec = importlib.util.spec_from_file_location(f"task_{task}_{file}", ROOT / "tasks" / task / f"{file}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metric(name: str):
    """One function of lmms-eval's metrics, without what the rest of that file imports."""
    tree = ast.parse((ROOT / "api/metrics.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    space = {"np": np, "re": re, "string": string}
    exec(compile(tree, "metrics.py", "exec"), space)
    return space[name]


def worded(form: str, letter: str, letters: str, text: str) -> str:
    """A form of an answer that means one option."""
    other = letters[(letters.index(letter) + 1) % len(letters)]
    return form.format(L=letter, l=letter.lower(), M=other, t=text, T=text.upper(), c=text.capitalize())


def lettered():
    """(choices, right letter, form, answer): every form for the right option, and for another one."""
    for size, (place, form) in itertools.product(CHOICES, enumerate(LETTERED)):
        letters = string.ascii_uppercase[:size]
        right = letters[place % size]
        for meant in (right, letters[(place + 1) % size]):
            yield CHOICES[size], right, form, worded(form, meant, letters, CHOICES[size][letters.index(meant)])


class Task:
    """One task: `cases` of (doc, form, answer), what lmms-eval makes of an answer, and of all of them."""

    def cases(self):
        raise NotImplementedError

    def process(self, doc, answer):
        """(What goes into `aggregate`, whether the answer is right.)"""
        raise NotImplementedError

    def options(self, doc):
        """The right answer, and a wrong one, in the plainest words."""
        raise NotImplementedError

    def aggregate(self, results):
        """The scores by the names that they have here, in %."""
        raise NotImplementedError


def letters_of(doc) -> tuple[str, str]:
    """The right letter of a doc that has `answer`, and another."""
    right = doc["answer"].strip("()")
    return right, "AB"[right == "A"]


class CvBench(Task):
    utils = property(lambda self: tasks_utils("cv_bench"))

    def cases(self):
        sources = (("2D", "ADE20K"), ("2D", "COCO"), ("3D", "Omni3D"))
        for i, (choices, right, form, answer) in enumerate(lettered()):
            kind, source = sources[i * 7 % 3]
            doc = {"idx": i, "type": kind, "source": source, "choices": choices, "answer": f"({right})"}
            yield doc, form, answer

    def process(self, doc, answer):
        result = self.utils.cv_bench_process_results(doc | {"task": "Count"}, [answer])["cv_bench_acc"]
        return result, result["is_correct"]

    def options(self, doc):
        return letters_of(doc)

    def aggregate(self, results):
        return {"CV-Bench": 100 * self.utils.cv_bench_default_aggregate_results(results)}


class Mmvp(Task):
    utils = property(lambda self: tasks_utils("mmvp"))

    def cases(self):
        for k, form in enumerate(LETTERED):
            for i, right in enumerate("ABAB"):  # a pair asks for A and for B; the second pair is answered wrongly
                meant = right if i < 2 else letters_of({"answer": right})[1]
                doc = {"index": 4 * k + i + 1, "options": "(a) long (b) short", "correct_answer": f"({right.lower()})"}
                yield doc, form, worded(form, meant, "AB", {"A": "long", "B": "short"}[meant])

    def process(self, doc, answer):
        names = {"index": "Index", "options": "Options", "correct_answer": "Correct Answer"}
        doc = {names[name]: value for name, value in doc.items()}
        result = self.utils.mmvp_process_results(doc, [answer])["mmvp_accuracy"]
        return result, result["is_correct"]

    def options(self, doc):
        return letters_of({"answer": doc["correct_answer"].upper()})

    def aggregate(self, results):
        return {
            "MMVP single": 100 * self.utils.mmvp_aggregate_results(results),
            "MMVP": 100 * self.utils.mmvp_aggregate_pair_results(results),
        }


class NaturalBench(Task):
    utils = property(lambda self: tasks_utils("naturalbench"))
    pattern = (True, False, False, True)

    def cases(self):
        lettered_forms = [form for form in LETTERED if "{t}" not in form and "{T}" not in form]
        for group in range(90):
            kind, forms = (("yes_no", YES_NO), ("multiple_choice", lettered_forms))[group % 2]
            for cell, first in enumerate(self.pattern):
                form = forms[(group // 2 + 11 * cell) % len(forms)]
                meant = "AB"[first if group % 5 == 0 else not first]
                yield {"index": 4 * group + cell, "question_type": kind}, form, worded(form, meant, "AB", "")

    def process(self, doc, answer):
        doc = {"Index": doc["index"], "Question_Type": doc["question_type"]}
        said = self.utils.naturalbench_process_results(doc, [answer])["naturalbench_Acc"]["score"]
        return said, said == int(self.pattern[doc["Index"] % 4])

    def options(self, doc):
        words = ("Yes", "No") if doc["question_type"] == "yes_no" else ("A", "B")
        return words if self.pattern[doc["index"] % 4] else words[::-1]

    def aggregate(self, results):
        groups = [results[i : i + 4] for i in range(0, len(results), 4)]
        return {name.replace("_", "-"): 100 * value for name, value in self.utils.get_scores(groups).items()}


class Pope(Task):
    utils = property(lambda self: tasks_utils("pope"))

    def cases(self):
        for i, (form, right) in enumerate(itertools.product(YES_NO, ("yes", "no"))):
            subset = ("random", "popular", "adversarial")[i * 5 // 2 % 3]
            yield {"question_id": i, "category": subset, "answer": right}, form, form

    def process(self, doc, answer):
        result = self.utils.pope_process_results(doc, [answer])["pope_accuracy"]
        return result | {"category": doc["category"]}, result["score"]

    def options(self, doc):
        return (doc["answer"], "no" if doc["answer"] == "yes" else "yes")

    def aggregate(self, results):
        found = {}
        for subset in ("random", "popular", "adversarial"):
            of_subset = [each for each in results if each["category"] == subset]
            for name in ("accuracy", "precision", "recall", "f1_score"):
                value = getattr(self.utils, f"pope_aggregate_{name}")(of_subset)
                found[f"POPE {subset} {name.replace('f1_score', 'F1')}"] = 100 * value
        return found


class Mme(Task):
    utils = property(lambda self: tasks_utils("mme"))

    def cases(self):
        names = [name for part in self.utils.eval_type_dict.values() for name in part]
        for i, form in enumerate(YES_NO):
            for right in ("Yes", "No"):
                yield {"question_id": f"{i}.png", "category": names[i % 14], "answer": right}, form, form

    def process(self, doc, answer):
        (result,) = self.utils.mme_process_results(doc, [answer]).values()
        return result, result["score"]

    def options(self, doc):
        return (doc["answer"], "No" if doc["answer"] == "Yes" else "Yes")

    def aggregate(self, results):
        return {
            f"MME {part.lower()}": self.utils.mme_aggregate_results([r for r in results if r["category"] in names])
            for part, names in self.utils.eval_type_dict.items()
        }


class ScienceQa(Task):
    utils = property(lambda self: tasks_utils("scienceqa"))

    def cases(self):
        for choices, right, form, answer in lettered():
            yield {"choices": choices, "answer": string.ascii_uppercase.index(right)}, form, answer

    def process(self, doc, answer):
        result = self.utils.sqa_process_results(doc, [answer])["exact_match"]
        return result, result

    def options(self, doc):
        return letters_of({"answer": string.ascii_uppercase[doc["answer"]]})

    def aggregate(self, results):
        return {"SciQA-IMG": 100 * sum(results) / len(results)}


class Hallusion(Task):
    utils = property(lambda self: tasks_utils("hallusion_bench", "evaluate_hb"))

    def cases(self):
        forms = itertools.cycle(YES_NO)
        for number in range(40):
            for figure, question in itertools.product(range(1 + number % 3), range(2)):
                place = {"category": ("VD", "VS")[number % 2], "subcategory": "chart", "set_id": str(number)}
                right = str((figure + question + number // 2) % 2)
                form = next(forms)
                yield place | {"figure_id": str(figure), "question_id": str(question), "gt_answer": right}, form, form

    def process(self, doc, answer):
        result = self.utils.hb_process_results(doc, [answer])["aAcc"]
        right = self.utils.hb_aggregation_result_intern([dict(result)], "aAcc")  # of one answer: 0 or 1
        return result, right

    def options(self, doc):
        return ("Yes", "No") if doc["gt_answer"] == "1" else ("No", "Yes")

    def aggregate(self, results):
        count = self.utils.hb_aggregation_result_intern
        return {name: 100 * float(count([dict(each) for each in results], name)) for name in ("aAcc", "fAcc", "qAcc")}


class Gqa(Task):
    exact_match = staticmethod(lambda *args, **more: metric("exact_match_hf_evaluate")(*args, **more))

    def cases(self):
        for form, text in itertools.product(WORDS, ("sofa", "tennis racket", "yes")):
            yield {"answer": text}, form, form.format(t=text, T=text.upper(), c=text.capitalize())

    def process(self, doc, answer):
        said = self.exact_match([answer], [doc["answer"]], ignore_case=True, ignore_punctuation=True)["exact_match"]
        return float(said), said

    def options(self, doc):
        return (doc["answer"], "table")

    def aggregate(self, results):
        return {"GQA": 100 * sum(results) / len(results)}


class MmBench(Task):
    evaluator = property(lambda self: tasks_utils("mmbench", "mmbench_evals").MMBench_Evaluator())

    def cases(self):
        for i, (choices, right, form, answer) in enumerate(lettered()):
            if len(choices) <= 4:
                yield {"index": i, "answer": right} | dict(zip("ABCD", choices, strict=False)), form, answer

    def process(self, doc, answer):
        import pandas as pd

        frame = pd.DataFrame([{"C": None, "D": None, "prediction": answer} | doc])
        said = self.evaluator.eval_sub_data(frame, {doc["index"]: doc["answer"]}, static_only=True)
        return said, said

    def options(self, doc):
        return letters_of(doc)

    def aggregate(self, results):
        return {"MMBench single": 100 * sum(results) / len(results)}


TASKS = {
    "cv_bench": CvBench(), "mmvp": Mmvp(), "naturalbench": NaturalBench(), "pope": Pope(), "mme": Mme(),
    "scienceqa": ScienceQa(), "hallusion": Hallusion(), "gqa": Gqa(), "mmbench": MmBench(),
}  # fmt: skip


def asked(task: Task) -> dict[str, object]:
    """What lmms-eval says of every wording, and its scores of plain answers, two thirds of which are right."""
    rng, cases = random.Random(0), list(task.cases())
    docs = list({json.dumps(doc, sort_keys=True): doc for doc, *_ in cases}.values())
    plain = [task.options(doc)[rng.random() < 1 / 3] for doc in docs]
    scores = task.aggregate([task.process(doc, answer)[0] for doc, answer in zip(docs, plain, strict=True)])
    verdicts = [[docs.index(doc), form, answer, bool(task.process(doc, answer)[1])] for doc, form, answer in cases]
    return {"docs": docs, "cases": verdicts, "plain": plain, "scores": scores}


def main() -> None:
    """Ask every task's own functions, and write what they say."""
    with contextlib.redirect_stdout(io.StringIO()):
        made = {name: asked(task) for name, task in TASKS.items()}
    head = {
        "made by": f"lmms-eval {importlib.metadata.version('lmms_eval')}, Python {sys.version.split()[0]}",
        "command": "ENV/bin/python tests/oracles/lmms_verdicts.py",
        "cases": "number of the doc, form of the answer, the answer, whether lmms-eval says that it is right",
        "plain": "an answer to each doc in the plainest words, of which `scores` are",
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines += [f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in made.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print({name: (len(each["cases"]), each["scores"]) for name, each in made.items()})


if __name__ == "__main__":
    ROOT = Path(importlib.util.find_spec("lmms_eval").origin).parent
    package = types.ModuleType("lmms_eval.tasks")  # whose own __init__ imports every harness there is
    package.__path__ = [str(ROOT / "tasks")]
    sys.modules["lmms_eval.tasks"] = package
    main()
