"""The model behind a registered version: MLflow keeps a copy of this file beside the weights and runs it, unpickled.

It runs where un2clip is not installed, so it imports nothing of it: a server needs the version's requirements alone.
"""

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow tries no other of its many readers on what may be hostile
#: Variable: the folder below which a request to a server may name images by their paths; without it none may.
FOLDER = "UN2CLIP_IMAGES"
SERVING = "__pyfunc_model_path__"  # variable that MLflow sets in a server's processes, and in no others

# Without gradients torch would take another attention kernel than the one with which the encoder was measured.
torch.backends.mha.set_fastpath_enabled(False)


class Encoder(PythonModel):
    """Columns `image` and `text`, either or both -> `image_embedding`, `text_embedding`, `similarity`, row by row."""

    def load_context(self, context: Any) -> None:
        """Load the folder; `device` of the model's configuration is auto, cpu or cuda."""
        device = (context.model_config or {}).get("device", "auto")
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        folder = Path(context.artifacts["clip"])
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}", device=self.device
        )
        self.model.eval()
        text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        never = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
        self.tokenize = open_clip.get_tokenizer(f"local-dir:{folder}", **never)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Embed every row, and compare the two sides of a row that has both.

        Args:
            context: unused; `load_context` had it.
            model_input: image: the bytes of a JPEG, PNG or WebP file, these in base64, the path of such a file, or an
                array (H, W, 3) of 0 to 255; text: a caption.
            params: normalize: whether the embeddings have length 1; batch_size: rows that are embedded at a time.

        Returns:
            A table with a row each: embeddings as lists of numbers, their cosine, None where a side is missing.
        """
        options = {"normalize": True, "batch_size": 32} | (params or {})
        columns = {name: list(model_input[name]) for name in ("image", "text") if name in model_input}
        if not columns:
            raise MlflowException.invalid_parameter_value("a column image or a column text is needed, or both")
        if all(len(cells) == 1 and _is_column(cells[0]) for cells in columns.values()):
            columns = {
                name: cells[0] for name, cells in columns.items()
            }  # MLflow makes one row of {"text": ["a", "b"]}
        lengths = {len(cells) for cells in columns.values()}
        if len(lengths) > 1:
            raise MlflowException.invalid_parameter_value("image and text must have as many rows")
        encoders = {"image": self._images, "text": self._texts}
        size = max(1, int(options["batch_size"]))
        sides = {name: self._embed(cells, encoders[name], size) for name, cells in columns.items()}
        rows = []
        for i in range(lengths.pop()):
            raw = {name: found[i] for name, found in sides.items() if i in found}
            unit = {name: torch.nn.functional.normalize(vector, dim=0) for name, vector in raw.items()}
            chosen = unit if options["normalize"] else raw
            row: dict[str, Any] = {
                f"{name}_embedding": chosen[name].tolist() if name in chosen else None for name in sides
            }
            if len(sides) == 2:
                row["similarity"] = float(unit["image"] @ unit["text"]) if len(unit) == 2 else None
            rows.append(row)
        return pd.DataFrame(rows, dtype=object)

    def _embed(self, cells: list[Any], encode: Callable[[Any], Tensor], batch_size: int) -> dict[int, Tensor]:
        """Row -> embedding (D,) on the processor, for the rows whose cell is not empty."""
        given = [(i, cell) for i, cell in enumerate(cells) if not (np.isscalar(cell) and pd.isna(cell) or cell is None)]
        found: dict[int, Tensor] = {}
        for first in range(0, len(given), batch_size):
            batch = given[first : first + batch_size]
            with torch.no_grad():
                found |= zip((i for i, _ in batch), encode(batch).float().cpu(), strict=True)
        return found

    def _images(self, batch: list[tuple[int, Any]]) -> Tensor:
        pixel_values = torch.stack([self.preprocess(read_image(value, row)) for row, value in batch])
        return self.model.encode_image(pixel_values.to(self.device))

    def _texts(self, batch: list[tuple[int, Any]]) -> Tensor:
        if wrong := [row for row, text in batch if not isinstance(text, str)]:
            raise MlflowException.invalid_parameter_value(f"row {wrong[0]}: text must be a text")
        return self.model.encode_text(self.tokenize([text for _, text in batch]).to(self.device))


def _is_column(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(each, str | bytes) for each in cell)


def read_image(value: Any, row: int) -> Image.Image:
    """The image of a cell, in RGB.

    Raises:
        MlflowException: it is none; a server answers 400 with the sentence.
    """
    try:
        if isinstance(value, bytes | bytearray):
            return _decode(bytes(value))
        if isinstance(value, str):
            return _decode(_file(value))
        array = np.asarray(value)
    except MlflowException:
        raise
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise MlflowException.invalid_parameter_value(f"row {row}: not a JPEG, PNG or WebP image ({error})") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise MlflowException.invalid_parameter_value(
            f"row {row}: an image is a file's bytes, these in base64, a path, or whole numbers (H, W, 3) of 0 to 255"
        )
    return Image.fromarray(array.astype(np.uint8))


def _decode(file: bytes | Path) -> Image.Image:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
        return image.convert("RGB")


def _file(text: str) -> bytes | Path:
    """The bytes that a text is in base64, if these begin as one of the three kinds does; otherwise it is a path."""
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2], validate=True)
    if text.startswith(("/9j/", "iVBORw0KGgo", "UklGR")):  # JPEG, PNG, WebP
        return base64.b64decode(text, validate=True)
    folder = os.environ.get(FOLDER)
    if folder is None and SERVING in os.environ:
        raise ValueError(f"a server opens no path unless {FOLDER} names the folder of the images; send bytes in base64")
    path = Path(folder or "", text)
    if folder is not None and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"a path must lie in the folder that {FOLDER} names")
    return path


set_model(Encoder())
