"""A registered version as a stock MLflow model: loaded, served over HTTP, and run on a batch, against open_clip."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pyarrow.parquet as pq
import pytest
import requests
import torch
from PIL import Image

from tests.candidates import Candidate, new_weights
from un2clip.__main__ import main
from un2clip.models.clip import clip_files
from un2clip.models.registry import FILES, Registry
from un2clip.tracking import packing

TEXTS = ["a grey gradient", "two blue moons"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[tuple[Candidate, str]]:
    """A promoted encoder, and the address of the store that it is in, which MLflow is told for the whole module."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UN2CLIP_TRACKING", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        candidate = Candidate(folder, new_weights(), "a", detail=160)
        candidate.promote(Registry("un2clip"))
        yield candidate, f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Two pictures, (40, 40, 3) uint8."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(2)]


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def expected(made, pictures) -> dict[str, torch.Tensor]:
    """By open_clip's own lines from the encoder's own folder: embeddings (2, D) of length 1 and not, and cosines."""
    folder = f"local-dir:{made[0].encoder}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    model.eval()
    with torch.no_grad():
        pixel_values = torch.stack([preprocess(Image.fromarray(each)) for each in pictures])
        tokens = open_clip.get_tokenizer(folder)(TEXTS)
        sides = {"image": model.encode_image(pixel_values), "text": model.encode_text(tokens)}
        unit = {name: each / each.norm(dim=-1, keepdim=True) for name, each in sides.items()}
    found = {f"{name}_embedding": each for name, each in unit.items()}
    return found | {"image_raw": sides["image"], "similarity": (unit["image"] * unit["text"]).sum(dim=-1)}


@pytest.fixture(scope="module")
def model(made):
    """As a user loads it."""
    import mlflow

    return mlflow.pyfunc.load_model("models:/un2clip@champion")


def check(found: object, expected: dict[str, torch.Tensor], *columns: str) -> None:
    """The columns, and no other, are there and equal to open_clip's."""
    table = pd.DataFrame(found)
    assert list(table.columns) == list(columns)
    for name in columns:
        assert np.allclose(np.array(table[name].tolist(), dtype=float), expected[name].numpy(), rtol=0, atol=1e-5), name


FORMS = ["bytes", "base64", "data URI", "path", "array", "list"]


def as_form(picture: np.ndarray, form: str, folder: Path) -> object:
    content = encoded(picture)
    path = folder / f"{abs(hash(content))}.png"
    path.write_bytes(content)
    return {
        "bytes": content,
        "base64": text_of(content),
        "data URI": f"data:image/png;base64,{text_of(content)}",
        "path": str(path),
        "array": picture,
        "list": picture.tolist(),
    }[form]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image(model, pictures, expected, tmp_path, form) -> None:
    """A file's bytes, base64 of them, its path, its pixels: the same embedding, within 1e-5 of open_clip's."""
    images = [as_form(picture, form, tmp_path) for picture in pictures]
    check(model.predict(pd.DataFrame({"image": images})), expected, "image_embedding")
    table = pd.DataFrame({"image": images, "text": TEXTS})
    check(model.predict(table), expected, "image_embedding", "text_embedding", "similarity")


def test_rows_may_lack_a_side_and_batches_change_nothing(model, pictures, expected) -> None:
    """Rows with an image, with a text and with both; one row at a time gives the same; raw embeddings on request."""
    images = [encoded(picture) for picture in pictures]
    found = model.predict(pd.DataFrame({"image": [images[0], None], "text": [None, TEXTS[1]]}))
    assert found["similarity"].tolist() == [None, None] and found["text_embedding"][0] is None
    assert np.allclose(found["image_embedding"][0], expected["image_embedding"][0], rtol=0, atol=1e-5)
    assert np.allclose(found["text_embedding"][1], expected["text_embedding"][1], rtol=0, atol=1e-5)
    check(model.predict({"text": TEXTS}, params={"batch_size": 1}), expected, "text_embedding")
    raw = model.predict(pd.DataFrame({"image": images}), params={"normalize": False})
    assert np.allclose(np.array(raw["image_embedding"].tolist()), expected["image_raw"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("image", b"no image", "row 0: not a JPEG, PNG or WebP image"),
        ("image", "iVBORw0KGgo=!", "row 0: not a JPEG, PNG or WebP image"),
        ("image", "nowhere.png", "row 0: not a JPEG, PNG or WebP image .*No such file"),
        ("image", np.zeros((3, 3)), "row 0: an image is a file's bytes"),
        ("image", [[[0, 0, 256]]], "row 0: an image is a file's bytes"),
        ("picture", "x", "a column image or a column text is needed"),
    ],
)
def test_what_is_no_image_is_one_sentence(model, column, cell, said) -> None:
    """Damaged base64, a file that is not there, numbers out of range: the row is named."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said) as raised:
        model.predict(pd.DataFrame({column: [cell]}))
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("kind", ["EPS", "BMP", "TIFF"])
def test_other_kinds_are_not_opened(model, pictures, tmp_path, kind) -> None:
    """Pillow's other readers are not tried, whatever a file is called."""
    from mlflow.exceptions import MlflowException

    content = encoded(pictures[0], kind)
    (tmp_path / "named.jpg").write_bytes(content)
    for cell in (content, str(tmp_path / "named.jpg")):
        with pytest.raises(MlflowException, match="not a JPEG, PNG or WebP image"):
            model.predict(pd.DataFrame({"image": [cell]}))


def test_the_version_is_what_it_says(made, model) -> None:
    """No pickle; the encoder's own bytes; signature, example and pins are there, and no path of this machine."""
    import mlflow

    candidate, _ = made
    folder = Path(mlflow.artifacts.download_artifacts("models:/un2clip@champion"))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    inside = {f"{packing.INSIDE}/{name}" for name in clip_files(candidate.encoder)}
    about = {"MLmodel", "served.py", "conda.yaml", "python_env.yaml", "requirements.txt"}
    assert files - {"registered_model_meta"} == inside | about | {"input_example.json", "serving_input_example.json"}
    for name in FILES:
        assert (folder / packing.INSIDE / name).read_bytes() == (candidate.encoder / name).read_bytes()
    info = mlflow.models.get_model_info("models:/un2clip@champion")
    assert info.signature.inputs.input_names() == ["image", "text"]
    assert [each.name for each in info.signature.params.params] == ["normalize", "batch_size"]
    pins = (folder / "requirements.txt").read_text().split()
    assert pins and all("==" in pin and "+" not in pin for pin in pins)
    assert str(candidate.encoder.parent) not in (folder / "MLmodel").read_text()
    assert list(model.predict(model.input_example).columns) == ["image_embedding", "text_embedding", "similarity"]


def test_the_models_page_has_scores_and_gate(made) -> None:
    """Scores are metrics of the logged model with their data set, once, however often the encoder is promoted."""
    from mlflow import MlflowClient

    candidate, uri = made
    candidate.promote(Registry("un2clip"))
    model = MlflowClient(uri).get_logged_model(Registry("un2clip").version("1").model_id)
    found = {(each.key, each.value, each.dataset_name, each.dataset_digest) for each in model.metrics}
    assert found == {
        ("mmvp_vlm/reference", 25.0, "mmvp_vlm", "d" * 32),
        ("mmvp_vlm/tuned", 40.0, "mmvp_vlm", "d" * 32),
        ("zeroshot/reference", 75.0, "zeroshot", "d" * 32),
        ("zeroshot/tuned", 75.0, "zeroshot", "d" * 32),
    }
    assert len(model.metrics) == len(found)
    assert model.tags["gate"] == "passed" and model.tags["made_from.shards"] == "c" * 64


def test_a_batch_job(made, pictures, expected, tmp_path) -> None:
    """`mlflow.models.predict` on a file of requests, in this environment."""
    import mlflow

    request = {"dataframe_split": {"columns": ["image"], "data": [[text_of(encoded(each))] for each in pictures]}}
    (tmp_path / "in.json").write_text(json.dumps(request))
    mlflow.models.predict(
        "models:/un2clip@champion",
        input_path=str(tmp_path / "in.json"),
        output_path=str(tmp_path / "out.json"),
        env_manager="local",
    )
    check(json.loads((tmp_path / "out.json").read_text())["predictions"], expected, "image_embedding")


@pytest.fixture(scope="module")
def server(made, tmp_path_factory) -> Iterator[str]:
    """`mlflow models serve` on a free port; the address of its requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/un2clip@champion", "-p", str(port)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": made[1],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*words, "--env-manager", "local", "--workers", "1"],
            env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if requests.get(f"{address}/ping", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield f"{address}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.timeout(300)
def test_a_server_answers_every_payload(server, pictures, expected) -> None:
    """The four forms of a request that MLflow's server takes, each with images in base64 and with texts."""
    columns = {"image": [text_of(encoded(each)) for each in pictures], "text": TEXTS}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    bodies = [
        {"dataframe_split": {"columns": list(columns), "data": [list(row.values()) for row in rows]}},
        {"dataframe_records": rows},
        {"inputs": columns},
        {"inputs": rows},
        {"instances": rows},
    ]
    for body in bodies:
        answer = requests.post(server, json=body, timeout=60)
        assert answer.status_code == 200, f"{list(body)}: {answer.text[:500]}"
        check(answer.json()["predictions"], expected, "image_embedding", "text_embedding", "similarity")
    alone = requests.post(server, json={"inputs": {"text": TEXTS}, "params": {"normalize": True}}, timeout=60)
    check(alone.json()["predictions"], expected, "text_embedding")


@pytest.mark.timeout(300)
def test_a_server_opens_no_path(server, pictures, tmp_path) -> None:
    """A request that names a file of the server is refused, whether the file is there or not, in the same words."""
    (tmp_path / "there.png").write_bytes(encoded(pictures[0]))
    said = []
    for name in ("there.png", "not.png"):
        answer = requests.post(server, json={"dataframe_records": [{"image": str(tmp_path / name)}]}, timeout=60)
        assert answer.status_code == 400
        said.append(answer.json()["message"].partition("Error: ")[2])
    assert said[0] == said[1] and "a server opens no path unless UN2CLIP_IMAGES names the folder" in said[0]


def test_a_servers_folder_of_images(pictures, tmp_path, monkeypatch) -> None:
    """With UN2CLIP_IMAGES a path is looked for below that folder, and a way out of it is refused."""
    import mlflow

    from un2clip.tracking import served

    (tmp_path / "images").mkdir()
    for place in (tmp_path / "images/a.png", tmp_path / "secret.png"):
        place.write_bytes(encoded(pictures[0]))
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    monkeypatch.setenv(served.SERVING, "model")
    monkeypatch.setenv(served.FOLDER, str(tmp_path / "images"))
    assert served.read_image("a.png", 0).size == (40, 40)
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(mlflow.MlflowException, match="must lie in the folder that UN2CLIP_IMAGES names"):
            served.read_image(path, 0)


def test_embed_needs_no_server(made, pictures, expected, tmp_path, capsys) -> None:
    """`un2clip embed` by alias: a row an image, and the file says which version of which encoder it was."""
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture))
    words = ["embed", str(tmp_path), "--to", str(tmp_path / "e.parquet"), "--alias", "champion", "--model", "un2clip"]
    assert main([*words, "--device", "cpu"]) == 0
    assert "e.parquet: 2 embeddings of 16" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "e.parquet")
    assert np.allclose(table["embedding"].to_pylist(), expected["image_embedding"], rtol=0, atol=1e-5)
    assert json.loads(table.schema.metadata[b"un2clip"]) == {
        "encoder": "models:/un2clip@champion", "encoder_sha256": made[0].sha256, "normalize": True, "version": "1",
        "dimensions": 16,
    }  # fmt: skip
    assert main([*words]) == 2 and "nothing is overwritten" in capsys.readouterr().err
