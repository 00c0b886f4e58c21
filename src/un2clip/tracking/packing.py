"""A CLIP folder as an MLflow model: weights and configuration as they are, a short file of code, nothing pickled."""

import base64
import importlib.metadata
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

#: Packages that the code of a version needs, pinned to what is installed here: what it was measured with.
PACKAGES = (
    "mlflow", "numpy", "open_clip_torch", "pandas", "pillow", "safetensors", "timm", "torch", "torchvision",
    "transformers",
)  # fmt: skip
CODE = Path(__file__).parent / "served.py"
#: Where a version has the folder that open_clip loads.
INSIDE = "artifacts/clip"


def pack(files: Mapping[str, Path], to: Path, *, model_id: str, run_id: str) -> None:
    """Write an MLflow model that embeds images and texts with a CLIP.

    Args:
        files: what open_clip loads, by name.
        to: folder to be made, in which these files are links.
        model_id: of MLflow's logged model to which it is going to belong.
        run_id: of the run that makes it.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # the current directory may be somebody's uv project
    model = Model(model_id=model_id, run_id=run_id)
    save_model(
        to,
        python_model=str(CODE),
        signature=_signature(),
        input_example=_example(),
        pip_requirements=_requirements(),
        mlflow_model=model,
    )
    (to / INSIDE).mkdir(parents=True)
    for name, path in files.items():  # as links: MLflow itself would copy the weights twice
        (to / INSIDE / name).symlink_to(path.resolve())
    flavor = model.flavors["python_function"]
    flavor["artifacts"] = {"clip": {"path": INSIDE, "uri": INSIDE}}
    flavor["model_code_path"] = CODE.name  # and not where it lies on this machine
    model.model_size_bytes = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    model.save(str(to / "MLmodel"))


def _signature() -> Any:
    """Image and text, either or both; embeddings and their cosine."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    def embedding(name: str) -> ColSpec:
        return ColSpec(Array(DataType.double), f"{name}_embedding", required=False)

    return ModelSignature(
        inputs=Schema([
            ColSpec(AnyType(), "image", required=False),  # of a binary column two of four forms decode the base64
            ColSpec(DataType.string, "text", required=False),
        ]),
        outputs=Schema([embedding("image"), embedding("text"), ColSpec(DataType.double, "similarity", required=False)]),
        params=ParamSchema([
            ParamSpec("normalize", DataType.boolean, True),
            ParamSpec("batch_size", DataType.integer, 32),
        ]),
    )  # fmt: skip


def _example() -> Any:
    """A request: a small picture in base64, and a caption."""
    import pandas as pd

    file = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()], "text": ["a grey gradient"]})


def _requirements() -> list[str]:
    """Pins for pip; a build's own suffix, such as +cpu, is not on the public index."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]
