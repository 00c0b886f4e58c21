"""MMVP-VLM (arXiv 2401.06209): which of two images does each of two statements belong to?

How the number misleads: a pair counts only if both statements pick their image, so chance is 25 %, and an
encoder that does not react to a pattern at all scores near 0, not near 25. In the published set one pair is
0.74 points of the average and 6.67 points of a type.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.errors import UserError, cause
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.calibration import Grade, best_grade
from un2clip.evaluation.readers import Picture, locked_revision, read_pixels
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.files.texts import read_csv
from un2clip.hashes import file_sha256
from un2clip.models.clip import Clip

#: The hub has the first; DIVA's script and MMVP's README spell it otherwise.
IMAGE_FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")
COLUMNS = ["Question ID", "Type", "Statement"]
MODEL: Model = "clip"
QUESTIONS = "Questions.csv"
#: What data are called by the best grade of their calibrations.
NAMES: dict[Grade, str] = {
    "exact": "MMVP-VLM",
    "close": "MMVP-VLM within a few pairs of a published run",
    "none": "pairs in MMVP-VLM's layout, not calibrated",
}
PROTOCOL = "fp32; 'a photo of ' + statement; ties are image 2; patterns by the Type column"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of Questions.csv, and its image."""

    id: int
    type: str
    statement: str
    image: Path


def run(clip: Clip, folder: Path, *, batch_size: int, spread: Spread = alone) -> BenchmarkResult:
    """Score every pair: value 1 if both statements pick their own image.

    Types come from the Type column. The prompt is "a photo of " + statement. For each statement, softmax
    over the two images; image 1 is picked when its share exceeds one half, so a tie counts as image 2.
    All in fp32. Only data that `un2clip calibrate` has passed are called MMVP-VLM in the protocol, with the grade.

    Args:
        folder: Questions.csv and an image tree as MMVP_VLM is distributed.
    """
    items = pair_items(clip, read_questions(folder), batch_size, spread)
    return BenchmarkResult(unit="%", protocol=_protocol(folder), items=items)


def count(folder: Path) -> int:
    """Number of pairs."""
    return len(read_questions(folder)) // 2


def pair_items(
    clip: Clip, questions: list[Question], batch_size: int, spread: Spread, *, said: str = "mmvp_vlm"
) -> tuple[Item, ...]:
    """An item a pair, in order; `said` stands before the progress bar."""
    correct = pair_correct(similarities(clip, questions, batch_size, spread, said=said))
    return tuple(
        Item(id=f"{left.id}-{right.id}", type=left.type, value=float(each))
        for left, right, each in zip(questions[::2], questions[1::2], correct, strict=True)
    )


def _protocol(folder: Path) -> str:
    """What was measured and how; of calibrated or fetched data also which Questions.csv, for the hub has had two."""
    grade, revision = best_grade(folder), locked_revision(folder, QUESTIONS)
    line = f"{NAMES[grade]}; {PROTOCOL}"
    if grade != "none" or revision:
        line += f"; {QUESTIONS} {file_sha256(folder / QUESTIONS)[:12]}"
    return f"{line} of revision {revision[:12]}" if revision else line


def similarities(
    clip: Clip, questions: list[Question], batch_size: int, spread: Spread = alone, *, said: str = "mmvp_vlm"
) -> Tensor:
    """Cosines of every pair, (P, 2 statements, 2 images)."""
    batches = _batches(questions, batch_size)
    return torch.cat(list(spread(said, batches, partial(_read, clip.preprocess), partial(_similarities, clip))))


def pair_correct(similarity: Tensor) -> list[bool]:
    """Which pairs are right: similarity (P, 2 statements, 2 images) -> P booleans.

    The scale of the logits can't change a pick, since only the sign of the difference matters.
    """
    picks_first = similarity[:, :, 0] > similarity[:, :, 1]
    return (picks_first[:, 0] & ~picks_first[:, 1]).tolist()


def read_questions(folder: Path) -> list[Question]:
    """Read and check the questions: consecutive odd and even ids of one type, each with its image.

    Raises:
        UserError: a column, a pair, or an image is missing, or there is no question.
    """
    trees = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if not (folder / QUESTIONS).is_file() or not trees:
        raise UserError(
            f"{folder} is not MMVP_VLM: it needs Questions.csv and a folder named {' or '.join(IMAGE_FOLDERS)}"
        )
    questions = [_question(trees[0], row, line) for line, row in read_csv(folder / QUESTIONS, COLUMNS)]
    if not questions:
        raise UserError(f"{folder}/Questions.csv has no question")
    if len(questions) % 2:
        raise UserError(f"{folder}/Questions.csv has {len(questions)} rows; they must come in pairs")
    for left, right in zip(questions[::2], questions[1::2], strict=True):
        if left.id % 2 == 0 or right.id != left.id + 1 or left.type != right.type:
            raise UserError(
                f"{folder}/Questions.csv: questions {left.id} and {right.id} are not a pair (odd, even, one type)"
            )
    return questions


def _question(tree: Path, row: dict[str, str], line: int) -> Question:
    if not re.fullmatch("[0-9]{1,9}", row["Question ID"]) or not row["Type"] or not row["Statement"].strip():
        raise UserError(
            f"{tree.parent}/Questions.csv, line {line}: need a number, a type and a statement; "
            f"got {cause(list(row.values()))}"
        )
    found = [tree / row["Type"] / f"{row['Question ID']}{suffix}" for suffix in (".jpg", ".JPG", ".png")]
    image = next((path for path in found if os.path.isfile(path)), None)  # which holds of a name too long as well
    if image is None or row["Type"] != Path(row["Type"]).name:
        raise UserError(f"{tree.parent}/Questions.csv, line {line}: no image {cause(found[0])}")
    return Question(id=int(row["Question ID"]), type=row["Type"], statement=row["Statement"].strip(), image=image)


def _batches(questions: list[Question], batch_size: int) -> list[list[Question]]:
    step = max(2, batch_size - batch_size % 2)
    return [questions[start : start + step] for start in range(0, len(questions), step)]


def _read(preprocess: Callable[[Image.Image], Tensor], questions: list[Question]) -> dict[str, Any]:
    pictures = (Picture(question.image, str(question.image)) for question in questions)
    return {"questions": questions, "pixel_values": read_pixels(preprocess, pictures)}


def _similarities(clip: Clip, batch: dict[str, Any]) -> Tensor:
    """Cosines of a batch of pairs, (P, 2 statements, 2 images)."""
    questions: list[Question] = batch["questions"]
    prompts = [f"a photo of {question.statement}" for question in questions]
    embedded = clip.embed(batch["pixel_values"], [question.image for question in questions])
    images = normalize(embedded, dim=-1).unflatten(0, (-1, 2))
    texts = normalize(clip.embed_texts(prompts), dim=-1).unflatten(0, (-1, 2))
    return (texts @ images.transpose(1, 2)).cpu()
