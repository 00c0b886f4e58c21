"""The MLLM benchmarks in their published layouts, of a few rows each: parquet as the hub has it, and the originals."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]
#: Of each set: where a parquet file of it lies, its columns with the values that a row has unless it says otherwise.
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cv_bench": (
        "test_2d.parquet",
        {"idx": 0, "type": "2D", "task": "Count", "image": b"", "question": "How many?", "choices": ["1", "2"],
         "answer": "(A)", "prompt": "How many?\n(A) 1\n(B) 2", "filename": "a.png", "source": "ADE20K"},
    ),
    "mmvp": (
        "data/train-00000-of-00001.parquet",
        {"Index": 1, "Question": "Is it?", "Options": "(a) Yes (b) No", "Correct Answer": "(a)", "image": b""},
    ),
    "naturalbench": (
        "data/test-00000-of-00001.parquet",
        {"Index": 0, "Image": b"", "Question": "Is it?", "Question_Type": "yes_no"},
    ),
    "pope": (
        "data/test-00000-of-00003.parquet",
        {"id": "0", "question_id": "1", "question": "Is there a dog in the image?", "answer": "yes",
         "image_source": "COCO_val2014_000000000001", "image": b"", "category": "random"},
    ),
    "mme": (
        "data/test-00000-of-00004.parquet",
        {"question_id": "1.png", "image": b"", "question": "Is it a dog? Please answer yes or no.", "answer": "Yes",
         "category": "existence"},
    ),
    "scienceqa": (
        "ScienceQA-IMG/test-00000-of-00001.parquet",
        {"image": b"", "question": "Which?", "choices": ["one", "two"], "answer": 0, "hint": "",
         "subject": "natural science"},
    ),
    "hallusion": (
        "data/image-00000-of-00001.parquet",
        {"category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "0",
         "question_id": "0", "question": "Is it?", "gt_answer": "1", "filename": "./VD/a.png", "image": b""},
    ),
    "gqa": (
        "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
        {"id": "1", "imageId": "n1", "question": "What is it?", "answer": "sofa", "types": {"structural": "query"}},
    ),
    "mmbench": (
        "en/dev-00000-of-00001.parquet",
        {"index": 0, "question": "Which?", "hint": "nan", "answer": "A", "A": "one", "B": "two", "C": "nan",
         "D": "nan", "category": "ocr", "image": b"", "source": "x", "L2-category": "y", "split": "dev"},
    ),
}  # fmt: skip


def png(colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of one colour, as a file's bytes."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def noise(seed: int, size: tuple[int, int]) -> bytes:
    """A picture of which every pixel has a colour of its own, as a file's bytes."""
    file, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, rows: Rows, pictures: Iterable[str] = (), row_group_size: int | None = None) -> Path:
    """Rows as the hub has them: a picture is a struct of its bytes and a path; None is none."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name in pictures:
        cells = [None if data is None else {"bytes": data, "path": None} for data in columns[name]]
        columns[name] = pa.array(cells, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def publish(name: str, folder: Path, docs: Rows, place: str = "") -> Path:
    """A set in parquet at its place: each doc laid over the columns' usual values; pictures where none is said."""
    usual = LAYOUTS[name][1]
    known = {column.lower().replace(" ", "_"): column for column in usual}
    rows = [usual | {known[key.lower()]: value for key, value in doc.items()} for doc in docs]
    pictures = [column for column, value in usual.items() if value == b""]
    for row in rows:
        row |= {column: png() for column in pictures if row[column] == b""}
    if name == "gqa":
        photographs = [{"id": key, "image": png()} for key in dict.fromkeys(row["imageId"] for row in rows)]
        write_parquet(folder / "testdev_balanced_images/testdev-00000-of-00001.parquet", photographs, ["image"])
    write_parquet(folder / (place or LAYOUTS[name][0]), rows, pictures, row_group_size=50)
    return folder
