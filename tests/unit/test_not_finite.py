"""An encoder that is not finite gets no score: NaN compares as false with everything, and would be class 0's share."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.test_images import encoded, write_tar
from un2clip.errors import UserError
from un2clip.evaluation import benchmarks, measuring
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.models.clip import CONFIG, WEIGHTS, Clip, load_clip


@pytest.fixture
def data(tiny, tmp_path: Path) -> dict[str, Path]:
    """A folder of data for each benchmark of a CLIP."""
    red, classes = encoded("PNG"), tmp_path / "zeroshot"
    write_tar(classes / "0.tar", {f"{name}.{e}": c for name in "ab" for e, c in (("png", red), ("cls", b"0"))})
    (classes / "classnames.txt").write_text("red\nblue\n")
    (classes / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    pairs = {f"{name}.{e}": c for name in "ab" for e, c in (("png", red), ("txt", name.encode()))}
    write_tar(tmp_path / "retrieval/0.tar", pairs)
    (tmp_path / "sugarcrepe/images").mkdir(parents=True)
    (tmp_path / "sugarcrepe/images/a.png").write_bytes(red)
    row = '{"0": {"filename": "a.png", "caption": "a", "negative_caption": "b"}}'
    (tmp_path / "sugarcrepe/add_att.json").write_text(row)
    shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / "detail/laptop")
    given = {name: tmp_path / name for name in ("zeroshot", "retrieval", "sugarcrepe", "detail")}
    return given | {name: tiny.benchmarks / name for name in ("mmvp_vlm", "segmentation", "probe")}


def names() -> list[str]:
    """Every file of benchmarks/ that measures a CLIP, also one that is new."""
    return [name for name in measuring.file_names() if measuring.get_file(name).MODEL == "clip"]


#: Benchmarks that ask the image tower alone.
WITHOUT_TEXTS = ("probe",)
#: What spoils a tower whose weights are all finite, as a training that ran away leaves it -> what the message names.
SPOILT: dict[str, tuple[Callable[[Clip], torch.Tensor], str]] = {
    "images": (lambda clip: clip.model.visual.proj, r"the embedding of (image|photograph) \S"),
    "texts": (lambda clip: clip.model.text_projection, r"the embedding of (class|text) \S"),
}


@pytest.mark.parametrize("factor", [3e38, 1e25, 0.0])
@pytest.mark.parametrize(
    ("name", "tower"),
    [(name, tower) for name in names() for tower in SPOILT if tower == "images" or name not in WITHOUT_TEXTS],
)
def test_every_benchmark_refuses_and_names_what(
    tiny, data: dict[str, Path], name: str, tower: str, factor: float
) -> None:
    """Finite weights that make embeddings which are not, or whose squares are not, or zero: each is named."""
    clip = load_clip(tiny.backbones / "clip")
    params = dataclasses.replace(tiny.section(Evaluate, "evaluate"), batch_size=4)
    if factor == 0:
        assert get_benchmark(name, "clip").run(clip, data[name], params).items, "it runs on such data"
    tensor, message = SPOILT[tower]
    with torch.no_grad():
        tensor(clip).copy_(tensor(clip).sign() * factor)
        assert tensor(clip).isfinite().all()
    with pytest.raises(UserError, match=f"{message}.* is not finite, or zero; this encoder cannot be used"):
        get_benchmark(name, "clip").run(clip, data[name], params)


def test_each_benchmark_has_data_here(data: dict[str, Path]) -> None:
    """A new file of benchmarks/ that measures a CLIP wants a folder above."""
    assert set(names()) == set(data) and len(list(Path(benchmarks.__path__[0]).glob("[!_]*.py"))) >= len(data)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_every_tensor_is_looked_at(tiny, tmp_path: Path, value: float) -> None:
    """One wrong number in any tensor of a checkpoint: refused where it is loaded, with the tensor's name."""
    good = load_file(tiny.backbones / "clip" / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((tiny.backbones / "clip" / CONFIG).read_bytes())
    last = sorted(good)[-1]
    for name in ("logit_scale", "ln_final.bias", "visual.conv1.weight", last):
        bad = good | {name: good[name].clone()}
        bad[name].view(-1)[-1] = value
        save_file(bad, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match=f"{name} is not finite"):
            load_clip(tmp_path)
