"""`un2clip embed`: a row an image, equal to open_clip's embedding; what cannot be read is said; a kill costs a part."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from un2clip.errors import UserError
from un2clip.models import embedding
from un2clip.models.clip import Clip, load_clip
from un2clip.models.embedding import embed

HOW = {"normalize": True, "encoder": "toy"}


def encoded(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 36, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def clip(tiny) -> Clip:
    return load_clip(tiny.backbones / "clip")


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with seven images, of which two lie in a folder below, and a tar of three."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "below/a.webp", "below/c.JPEG", "d.png", "e.png", "f.png"]):
        kind = {".png": "PNG", ".webp": "WEBP"}.get(Path(name).suffix, "JPEG")
        (folder / name).write_bytes(encoded(number, kind))
    write_tar(folder / "t.tar", [(f"x/{n}.png", encoded(n)) for n in range(3)] + [("x/2.txt", b"caption")])
    (folder / "notes.md").write_text("no image")
    return folder


def expected(tiny, contents: list[bytes]) -> np.ndarray:
    """By open_clip's own lines, of length 1."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny.backbones / 'clip'}")
    model.eval()
    with torch.no_grad():
        found = model.encode_image(torch.stack([preprocess(Image.open(io.BytesIO(each))) for each in contents]))
    return (found / found.norm(dim=-1, keepdim=True)).numpy()


def test_every_image_has_its_embedding(tiny, clip, images, tmp_path) -> None:
    """Tars and files of a folder in order of name, each equal to open_clip's; the file says what they are."""
    to = tmp_path / "out/e.parquet"
    assert embed(clip, [images, images / "a.png"], to, how=HOW, batch_size=4) == (11, 0)
    table = pq.read_table(to)
    names = ["a.png", "b.jpg", "below/a.webp", "below/c.JPEG", "d.png", "e.png", "f.png"]
    assert table["key"].to_pylist() == ["x/0", "x/1", "x/2", *names, "a.png"]
    assert table["source"].to_pylist() == [str(images / "t.tar")] * 3 + [str(images)] * 8
    assert table["error"].to_pylist() == [None] * 11
    contents = [encoded(n) for n in range(3)] + [(images / name).read_bytes() for name in [*names, "a.png"]]
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected(tiny, contents), rtol=0, atol=1e-5)
    assert json.loads(table.schema.metadata[b"un2clip"]) == HOW | {"dimensions": clip.embed_dim}
    assert [path.name for path in to.parent.iterdir()] == ["e.parquet"]


def test_raw_embeddings_are_the_encoders_own(clip, images, tmp_path) -> None:
    """Without normalize the length is the encoder's."""
    embed(clip, [images / "a.png"], tmp_path / "e.parquet", how=HOW | {"normalize": False}, batch_size=1)
    found = np.array(pq.read_table(tmp_path / "e.parquet")["embedding"].to_pylist())
    pixel_values = clip.preprocess(Image.open(images / "a.png"))[None]
    assert np.allclose(found, clip.embed(pixel_values).numpy(), rtol=0, atol=1e-5)
    assert not np.isclose(np.linalg.norm(found), 1.0, atol=1e-2)


def test_what_cannot_be_read_is_said(clip, tmp_path) -> None:
    """A broken file, another kind under a usual name, no image or two in a sample, a tar cut off: a row says why."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(0)[:200])
    (folder / "b.jpg").write_bytes(encoded(1, "EPS"))
    (folder / "c.png").write_bytes(encoded(2))
    write_tar(
        folder / "t.tar",
        [("no.txt", b"x"), ("two.png", encoded(3)), ("two.jpg", encoded(4, "JPEG")), ("k.png", encoded(5))],
    )
    whole = (folder / "t.tar").read_bytes()
    (folder / "u.tar").write_bytes(whole[: len(whole) // 2])
    assert embed(clip, [folder], tmp_path / "e.parquet", how=HOW, batch_size=3)[0] == 2
    table = pq.read_table(tmp_path / "e.parquet").to_pylist()
    errors = {(Path(row["source"]).name, row["key"]): row["error"] for row in table}
    assert [row["embedding"] is None for row in table] == [row["error"] is not None for row in table]
    assert errors[("t.tar", "k")] is None and errors[("images", "c.png")] is None
    assert errors[("t.tar", "no")] == "0 images of this name" and errors[("t.tar", "two")] == "2 images of this name"
    assert all(errors[("images", name)].startswith("not a readable image: ") for name in ("a.png", "b.jpg"))
    assert errors[("u.tar", "")].startswith("the tar cannot be read to its end")


class Interrupted(Exception):
    """What stands for a kill."""


def test_it_goes_on_where_it_was_cut_off(clip, images, tmp_path, monkeypatch) -> None:
    """Cut off in any batch: parts that are whole are not embedded again, and the file has the same bytes."""
    monkeypatch.setattr(embedding, "FILES_A_PART", 3)  # with the tar four parts, of 2, 2, 2 and 1 batches
    calls: list[int] = []

    def counted(at: int) -> Clip:
        class Counted(Clip):
            def embed(self, pixel_values):
                calls.append(len(pixel_values))
                if len(calls) == at:
                    raise Interrupted
                return super().embed(pixel_values)

        return Counted(**{field.name: getattr(clip, field.name) for field in dataclasses.fields(clip)})

    embed(counted(0), [images], tmp_path / "whole.parquet", how=HOW, batch_size=2)
    assert calls == [2, 1, 2, 1, 2, 1, 1]
    begun = {1: 0, 2: 0, 3: 2, 4: 2, 5: 4, 6: 4, 7: 6}  # batches of the parts that are whole then
    for at, done in begun.items():
        to = tmp_path / f"{at}.parquet"
        calls.clear()
        with pytest.raises(Interrupted):
            embed(counted(at), [images], to, how=HOW, batch_size=2)
        assert not to.exists()
        calls.clear()
        assert embed(counted(0), [images], to, how=HOW, batch_size=2) == (10, 0)
        assert len(calls) == 7 - done
        assert to.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert not to.with_name(f"{to.name}.parts").exists()


def test_parts_of_other_images_or_settings_are_not_taken(clip, images, tmp_path, monkeypatch) -> None:
    """An image changed between two tries, or other settings: its part is made again."""
    to = tmp_path / "e.parquet"
    monkeypatch.setattr(embedding, "_join", lambda *given: (0, 0))  # cut off before the end
    embed(clip, [images], to, how=HOW, batch_size=8)
    folder = to.with_name("e.parquet.parts")
    made = {path.name for path in folder.glob("*.parquet")}
    (images / "a.png").write_bytes(encoded(99))
    embed(clip, [images], to, how=HOW, batch_size=8)
    changed = {path.name for path in folder.glob("*.parquet")} - made
    assert [name[:6] for name in changed] == ["000001"]
    embed(clip, [images], to, how=HOW | {"normalize": False}, batch_size=8)
    assert len({path.name for path in folder.glob("*.parquet")}) == 5
    monkeypatch.undo()
    (folder / "mine.txt").write_text("a person's own")
    embed(clip, [images], to, how=HOW, batch_size=8)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_nothing_is_overwritten_and_what_is_absent_is_named(clip, images, tmp_path) -> None:
    """A file that exists, a place that does not, a folder without an image, a process beside this one: one sentence."""
    (tmp_path / "there.parquet").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    for sources, to, said in (
        ([images], "there.parquet", "exists and nothing is overwritten"),
        ([tmp_path / "none"], "e.parquet", "none does not exist; name tars, images, or folders"),
        ([images, tmp_path / "empty"], "e.parquet", "empty has no tar and no image"),
        ([images / "notes.md"], "e.parquet", "notes.md has no tar and no image"),
    ):
        with pytest.raises(UserError, match=said):
            embed(clip, sources, tmp_path / to, how=HOW, batch_size=8)
    assert (tmp_path / "there.parquet").read_bytes() == b"mine" and not (tmp_path / "e.parquet.parts").exists()
    folder = tmp_path / "f.parquet.parts"
    folder.mkdir()
    with embedding._alone(folder, tmp_path / "f.parquet"):
        with pytest.raises(UserError, match=r"another process embeds into .*f\.parquet;"):
            embed(clip, [images], tmp_path / "f.parquet", how=HOW, batch_size=8)
