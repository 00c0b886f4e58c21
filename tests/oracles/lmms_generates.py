"""Does lmms-eval, asking the same folder the same questions of the same file, hear the same words?

It is run by hand with lmms-eval's own environment, which must have torch and transformers of this project's versions:

    python -m tests.oracles.lmms_generates ENV/bin/python FOLDER

A toy LLaVA and a file in POPE's layout are made in FOLDER, `un2clip ask` and `python -m lmms_eval` ask it one by one in
float32, and the answers are compared. Square pictures of the encoder's size need neither crop nor resize: there all
must be equal. Of other pictures transformers' processor, which lmms-eval takes as it is, crops the middle.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from tests.mllm_sets import LAYOUTS, noise, publish
from tests.toy_llava import SIDE, save_llava
from un2clip.evaluation.benchmarks import pope
from un2clip.evaluation.mllm.llava import load_llava

WORDS = "dog cat tree bus boat elephant cup chair book clock vase kite bench bird horse sheep".split()
TASK = {
    "task": "local_pope",
    "dataset_path": "parquet",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "generation_kwargs": {"max_new_tokens": 6, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
    "metric_list": [{"metric": "pope_accuracy", "aggregation": "mean", "higher_is_better": True}],
    "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": pope.BY_WORD}},
}
FUNCTIONS = "doc_to_visual: !function utils.local_visual\ndoc_to_text: !function utils.pope_doc_to_text\n"
FUNCTIONS += "process_results: !function utils.local_results\n"
UTILS = """import io
from PIL import Image
from lmms_eval.tasks.pope.utils import *

def local_visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]

def local_results(doc, results):
    return {"pope_accuracy": float(pope_process_results(doc, results)["pope_accuracy"]["score"])}
"""


def ours(assistant: Path, data: Path) -> list[str]:
    """What this program hears."""
    llava = load_llava(assistant, torch.device("cpu"), dtype="float32", max_new_tokens=6)
    return [llava.generate([question])[0] for question in pope.read(data)]


def theirs(python: str, assistant: Path, data: Path) -> list[str]:
    """What lmms-eval hears, in the order of the rows."""
    tasks, out = data / "tasks", data / "out"
    tasks.mkdir(exist_ok=True)
    file = str(data / LAYOUTS["pope"][0])
    task = TASK | {"dataset_kwargs": {"data_files": {"test": file}}}
    (tasks / "local_pope.yaml").write_text(yaml.safe_dump(task, sort_keys=False) + FUNCTIONS)
    (tasks / "utils.py").write_text(UTILS)
    model = f"pretrained={assistant},device=cpu,device_map=cpu,dtype=float32"
    subprocess.run(
        [python, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", model, "--tasks", "local_pope",
         "--include_path", str(tasks), "--batch_size", "1", "--output_path", str(out), "--log_samples"],
        check=True,
    )  # fmt: skip
    (samples,) = out.rglob("*samples_local_pope.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [
        row["filtered_resps"][0] if isinstance(row["filtered_resps"], list) else row["filtered_resps"] for row in rows
    ]


def main(python: str, folder: Path) -> None:
    """Compare both, on square pictures and on others."""
    assistant = save_llava(folder / "assistant")
    for kind, size in (("square", (SIDE, SIDE)), ("wide", (2 * SIDE, SIDE))):
        docs = [
            {"question_id": str(i), "image": noise(i, size), "question": f"Is there a {word} in the image?"}
            for i, word in enumerate(WORDS)
        ]
        data = publish("pope", folder / kind, docs)
        mine, other = ours(assistant, data), [answer.strip() for answer in theirs(python, assistant, data)]
        equal = sum(a == b for a, b in zip(mine, other, strict=True))
        print(f"{kind} pictures: {equal} of {len(mine)} answers are equal; {len({*mine})} different ones")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
