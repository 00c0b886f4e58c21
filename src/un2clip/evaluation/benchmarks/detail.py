"""Detail: several folders of pairs, each in MMVP-VLM's layout and scored as MMVP-VLM (arXiv 2401.06209), as one score.

How the number misleads: it is the share of all pairs, so the folder with the most pairs weighs most; its types say
which folder moved. Pairs that a program made, of a rendered world or by edits, are narrower than what people noticed in
photographs: a gain on them alone is no gain on MMVP-VLM.
"""

from pathlib import Path

from un2clip.errors import UserError, cause
from un2clip.evaluation.benchmarks import BenchmarkResult, Model
from un2clip.evaluation.benchmarks.mmvp_vlm import PROTOCOL, Question, pair_items, read_questions
from un2clip.evaluation.spreading import Spread, alone
from un2clip.evidence.items import Item
from un2clip.models.clip import Clip

MODEL: Model = "clip"


def run(clip: Clip, folder: Path, *, batch_size: int, spread: Spread = alone) -> BenchmarkResult:
    """Score every pair of every folder: value 1 if both statements pick their own image.

    Types are FOLDER/TYPE, and so begin the items' ids; the protocol says how many pairs each folder has.

    Args:
        folder: one folder a source, such as mmvp_vlm/, laptop/ and edits/, each with its Questions.csv and image tree.
    """
    found = read_sources(folder)
    items = tuple(
        Item(id=f"{name}/{item.id}", type=f"{name}/{item.type}", value=item.value)
        for name, questions in found.items()
        for item in pair_items(clip, questions, batch_size, spread, said=f"detail {name}")
    )
    counts = ", ".join(f"{len(questions) // 2} {name}" for name, questions in found.items())
    return BenchmarkResult(unit="%", protocol=f"{PROTOCOL}; pairs: {counts}", items=items)


def count(folder: Path) -> int:
    """Number of pairs."""
    return sum(len(questions) for questions in read_sources(folder).values()) // 2


def read_sources(folder: Path) -> dict[str, list[Question]]:
    """The questions of each folder below, in order of name; hidden folders, and files beside them, are passed over.

    Raises:
        UserError: there is none, one is not in the layout or a link, whose files would not be in the data's hash.
    """
    below = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    if not below:
        raise UserError(f"{folder} holds no folder; each source of pairs is one, in MMVP_VLM's layout")
    for path in below:
        if path.is_symlink() or "@" in path.name or not path.name.isprintable():
            raise UserError(f"{cause(path)}: a source of pairs is a folder, no link, its name without an @")
    return {path.name: read_questions(path) for path in below}
