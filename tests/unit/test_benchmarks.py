import csv
import dataclasses
import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
import yaml
from clip_oracle import naive_mmvp, naive_zeroshot
from PIL import Image

from un2clip.config import build, read_params
from un2clip.errors import UserError
from un2clip.evaluation import benchmarks, measuring
from un2clip.evaluation.benchmarks import probe, reconstruction, segmentation
from un2clip.evaluation.benchmarks.mmvp_vlm import IMAGE_FOLDERS, PROTOCOL, pair_correct, read_questions
from un2clip.evaluation.measuring import Ask, Evaluate, Subject, get_benchmark, measure
from un2clip.evaluation.readers import data_sha256
from un2clip.evidence.scores import ROLES, Item, load_scores, mismatch
from un2clip.hashes import file_sha256
from un2clip.models.clip import Clip, load_clip
from un2clip.stages import stage_params
from un2clip.stages.evaluate import evaluate

SECTION = {
    "batch_size": 16,
    "processes": 1,
    "engine": "processes",
    "workers": 0,
    "precision": "fp32",
    "segmentation": {"method": "clip", "protocol": "laptop", "pictures": 2},
    "probe": {"layer": -1, "grid": 4, "penalties": [1.0]},
    "reconstruction": {"image_px": 0, "pictures": 2, "inception": {}},
}


def run(name: str, clip: Clip, folder: Path, batch_size: int) -> tuple[Item, ...]:
    params = build(Evaluate, SECTION | {"batch_size": batch_size}, "evaluate")
    return get_benchmark(name, "clip").run(clip, folder, params).items


@pytest.mark.parametrize("name", ["mmvp_vlm", "zeroshot", "segmentation", "probe"])
def test_an_embedding_that_is_not_finite_has_no_score(tiny, name) -> None:
    """Weights that are finite and overflow on the way: every benchmark says so instead of a number."""
    clip = load_clip(tiny.backbones / "clip")
    with torch.no_grad():
        clip.model.visual.proj.fill_(3e38)
    with pytest.raises(UserError, match="is not finite, or zero; this encoder cannot be used"):
        run(name, clip, tiny.benchmarks / name, 16)


def test_pairs_by_a_hand_made_table() -> None:
    """A pair counts only if both statements pick their own image; a tie counts as image 2."""
    table = torch.tensor(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both right
            [[0.9, 0.1], [0.8, 0.2]],  # image 1 wins both texts
            [[0.1, 0.9], [0.2, 0.8]],  # image 2 wins both texts
            [[0.1, 0.9], [0.8, 0.2]],  # both wrong
            [[0.5, 0.5], [0.2, 0.8]],  # a tie at the first statement: picks image 2, wrong
            [[0.9, 0.1], [0.5, 0.5]],  # a tie at the second statement: picks image 2, right
        ]
    )
    assert pair_correct(table) == [True, False, False, False, False, True]


def test_mmvp_equals_the_protocol_read_aloud(tiny) -> None:
    """Every pair's outcome equals a loop with one image and one text at a time and a softmax over the images."""
    clip = load_clip(tiny.backbones / "clip")
    folder = tiny.benchmarks / "mmvp_vlm"
    items = run("mmvp_vlm", clip, folder, 10)
    assert {item.id: item.value for item in items} == naive_mmvp(clip, folder)
    assert [item.type for item in items[::4]] == list(
        dict.fromkeys(row[1] for row in list(csv.reader((folder / "Questions.csv").open()))[1:])
    )


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_batch_size_does_not_change_an_outcome(tiny, batch_size: int) -> None:
    """Pairs are never torn apart and the last batch may be short."""
    clip, folder = load_clip(tiny.backbones / "clip"), tiny.benchmarks / "mmvp_vlm"
    assert run("mmvp_vlm", clip, folder, batch_size) == run("mmvp_vlm", clip, folder, 16)


@pytest.mark.parametrize("name", IMAGE_FOLDERS)
def test_all_spellings_of_the_image_folder(tiny, tmp_path, name: str) -> None:
    """The three spellings in use give the same questions."""
    shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / "m")
    (tmp_path / "m" / IMAGE_FOLDERS[0]).rename(tmp_path / "m" / name)
    assert len(read_questions(tmp_path / "m")) == 72


def edit(folder, change) -> None:
    rows = list(csv.reader((folder / "Questions.csv").open()))
    change(rows)
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(2), "must come in pairs"),
        (lambda rows: rows[0].__setitem__(1, "Kind"), "must have the columns"),
        (lambda rows: rows[1].__setitem__(0, "99"), "no image"),
        (lambda rows: rows[1].__setitem__(0, "one"), "line 2: need a number"),
        (lambda rows: rows[1].__setitem__(2, ""), "line 2: need a number"),
        (lambda rows: rows[1].append("x"), "line 2: need 3 values"),
        (lambda rows: (rows.pop(1), rows.pop(2)), "are not a pair"),
        (lambda rows: rows.__delitem__(slice(1, None)), "has no question"),
    ],
)
def test_bad_questions_are_named(tiny, tmp_path, change, message: str) -> None:
    """Each fault of the file is a UserError that says where."""
    shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / "m")
    edit(tmp_path / "m", change)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "m")


def test_two_revisions_of_the_questions_are_never_compared(tiny, tmp_path) -> None:
    """One word of a statement differs: the protocol says which file of which revision, and compare refuses both."""
    subject = Subject(model=load_clip(tiny.backbones / "clip"), method="reference", encoder_sha256="e" * 64)
    params = build(Evaluate, SECTION, "evaluate")
    benchmark, found = get_benchmark("mmvp_vlm", "clip"), {}
    for commit, word in (("69218ac4ba2ec1fa", "a"), ("211372d000000000", "one")):
        folder = shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / commit / "mmvp_vlm")
        edit(folder, lambda rows, word=word: rows[1].__setitem__(2, word + rows[1][2]))
        (before,) = measure(benchmark, {"reference": subject}, folder, params)
        assert before.protocol == f"pairs in MMVP-VLM's layout, not calibrated; {PROTOCOL}", "nothing says which it is"
        sha256 = file_sha256(folder / "Questions.csv")
        lock = {"location": "MMVP/MMVP_VLM", "revision": commit, "sha256": {"Questions.csv": sha256}}
        (tmp_path / commit / "mmvp_vlm.lock.yaml").write_text(yaml.safe_dump(lock))
        (after,) = measure(benchmark, {"reference": subject}, folder, params)
        assert after.protocol == f"{before.protocol}; Questions.csv {sha256[:12]} of revision {commit[:12]}"
        found[commit] = before, after
    (unsaid, first), (also_unsaid, second) = found.values()
    assert "measured in different ways" in mismatch(first, second) and mismatch(first, first) is None
    assert mismatch(unsaid, also_unsaid).startswith("data_sha256 differs")
    edit(folder, lambda rows: rows[1].__setitem__(2, "edited since"))
    assert measure(benchmark, {"reference": subject}, folder, params)[0].protocol == unsaid.protocol
    (tmp_path / commit / "mmvp_vlm.lock.yaml").write_text("a: b")
    with pytest.raises(UserError, match="mmvp_vlm.lock.yaml is no lock; delete it"):
        measure(benchmark, {"reference": subject}, folder, params)


def test_unreadable_image_is_named(tiny, tmp_path) -> None:
    """A page of HTML named .jpg is a UserError with its path."""
    shutil.copytree(tiny.benchmarks / "mmvp_vlm", tmp_path / "m")
    (tmp_path / "m" / IMAGE_FOLDERS[0] / "Orientation" / "1.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"1\.jpg is not a readable image"):
        run("mmvp_vlm", load_clip(tiny.backbones / "clip"), tmp_path / "m", 8)


def test_zeroshot_equals_a_naive_loop(tiny) -> None:
    """Every image's outcome equals one image at a time against class means of templates made by hand."""
    clip, folder = load_clip(tiny.backbones / "clip"), tiny.benchmarks / "zeroshot"
    items = run("zeroshot", clip, folder, 8)
    assert {item.id: item.value for item in items} == naive_zeroshot(clip, folder)
    assert len({item.type for item in items}) == 36


@pytest.mark.parametrize("missing", ["classnames.txt", "zeroshot_classification_templates.txt", "test"])
def test_missing_part_of_zeroshot_is_named(tiny, tmp_path, missing: str) -> None:
    """The layout's files are each asked for by name."""
    shutil.copytree(tiny.benchmarks / "zeroshot", tmp_path / "z")
    target = tmp_path / "z" / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UserError, match=missing):
        run("zeroshot", load_clip(tiny.backbones / "clip"), tmp_path / "z", 8)


def test_class_outside_the_names(tiny, tmp_path) -> None:
    """A label that no name belongs to is refused, with the sample."""
    shutil.copytree(tiny.benchmarks / "zeroshot", tmp_path / "z")
    (tmp_path / "z" / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="has class '2', but there are 2 names"):
        run("zeroshot", load_clip(tiny.backbones / "clip"), tmp_path / "z", 8)


def test_unknown_benchmark_lists_those_there_are() -> None:
    """A benchmark is a file; another name is refused with the list."""
    with pytest.raises(UserError, match="unknown benchmark 'vlm'; known: .*mmvp_vlm, .*segmentation, .*zeroshot"):
        get_benchmark("vlm", "clip")


ASK = read_params(Path(__file__).parents[2] / "params.yaml")["ask"] | {"batch_size": 16}


def test_the_section_is_built_of_the_files() -> None:
    """What params.yaml has, as the stage reads it: numbers of all benchmarks, and those that a file owns."""
    read = stage_params("evaluate", SECTION)
    own = {
        "workers": 0,
        "precision": "fp32",
        "segmentation": segmentation.Options(method="clip", protocol="laptop", pictures=2),
        "reconstruction": reconstruction.Options(image_px=0, pictures=2, inception={}),
    }
    assert read == Evaluate(
        batch_size=16, processes=1, engine="processes", probe=probe.Options(layer=-1, grid=4, penalties=(1.0,)), **own
    )
    assert isinstance(read, Evaluate)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            SECTION | {"size": 1},
            r"unknown parameter evaluate\.size; known here: batch_size, processes, engine, workers, precision, probe",
        ),
        (
            {key: value for key, value in SECTION.items() if key != "segmentation"},
            r"missing parameter evaluate\.segmentation: a mapping of method, protocol, pictures",
        ),
        (SECTION | {"batch_size": 0}, r"evaluate\.batch_size must be at least 1, got 0"),
        (SECTION | {"segmentation": {"method": "clip"}}, r"missing parameter evaluate\.segmentation\.protocol: a text"),
        (
            SECTION | {"segmentation": SECTION["segmentation"] | {"pictures": 0}},
            r"evaluate\.segmentation\.pictures must be at least 1, got 0",
        ),
        (
            SECTION | {"segmentation": SECTION["segmentation"] | {"method": "dense"}},
            "unknown dense method 'dense'; known: clip, ",
        ),
    ],
)
def test_the_section_is_read_strictly(section: dict, message: str) -> None:
    """A key that is unknown, missing or wrong is one line with its full name, in a benchmark's own options too."""
    with pytest.raises(UserError, match=message):
        stage_params("evaluate", section)


NEW = """
from dataclasses import dataclass
from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evidence.items import Item

MODEL = "mllm"

@dataclass(frozen=True, kw_only=True)
class Options:
    prompt: str

def run(model, folder, *, batch_size, options):
    answers = [model(options.prompt + path.read_text()) for path in sorted(folder.glob("*.txt"))]
    items = tuple(Item(id=str(i), type="a", value=float(said == "yes")) for i, said in enumerate(answers))
    return BenchmarkResult(unit="%", protocol=f"prompt {options.prompt!r}, {batch_size} at once", items=items)
"""


@pytest.fixture
def with_a_new_file(tmp_path, monkeypatch):
    """A file more among the benchmarks; the module that reads them, imported afresh beside it."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/new.py").write_text(NEW)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path / "files")])
    spec = importlib.util.spec_from_file_location("fresh_measuring", measuring.__file__)
    assert spec and spec.loader
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh_measuring", fresh)
    spec.loader.exec_module(fresh)
    yield fresh
    del sys.modules["un2clip.evaluation.benchmarks.new"], benchmarks.new


def test_a_file_and_its_numbers_are_all_that_a_benchmark_needs(with_a_new_file, tmp_path) -> None:
    """Of another kind of model, with options of its own: the section takes them, and both roles are scored."""
    (tmp_path / "data").mkdir()
    for i in range(4):
        (tmp_path / f"data/{i}.txt").write_text(str(i))
    with pytest.raises(UserError, match=r"missing parameter ask\.new: a mapping of prompt"):
        build(with_a_new_file.Ask, ASK, "ask")
    params = build(with_a_new_file.Ask, ASK | {"new": {"prompt": "Is it "}}, "ask")
    assert isinstance(build(with_a_new_file.Evaluate, SECTION, "evaluate"), with_a_new_file.Evaluate)
    subjects = {
        "reference": Subject(model=lambda text: "yes" if text == "Is it 0" else "no", method="m", encoder_sha256="a"),
        "tuned": Subject(model=lambda text: "yes", method="n", encoder_sha256="b"),
    }
    chosen = with_a_new_file.get_benchmark("new-set", "mllm")
    found = with_a_new_file.measure(chosen, subjects, tmp_path / "data", params)
    assert [(each.role, each.score) for each in found] == [("reference", 25.0), ("tuned", 100.0)]
    tuned = found[1]
    assert (tuned.benchmark, tuned.role, tuned.method, tuned.encoder_sha256) == ("new-set", "tuned", "n", "b")
    assert (tuned.unit, tuned.protocol) == ("%", "prompt 'Is it ', 16 at once")
    assert tuned.data_sha256 == data_sha256(tmp_path / "data")


@pytest.mark.usefixtures("with_a_new_file")
def test_a_model_of_another_kind_is_refused_before_anything_is_loaded(tmp_path) -> None:
    """One sentence that says what the benchmark measures; neither encoder nor data need be there."""
    nothing = dict.fromkeys(("benchmarks", "backbones", "encoder", "scores"), tmp_path / "none")
    with pytest.raises(
        UserError, match="^benchmark new-set measures a model of the kind mllm, not clip or autoencoder$"
    ):
        evaluate(build(Evaluate, SECTION, "evaluate"), benchmark="new-set", device="cpu", checkpoints="", **nothing)


def test_every_file_says_what_it_measures() -> None:
    """Of an encoder or of a language model; the options of each are a part of that section, and of no other."""
    names = [module.name for module in iter_modules(benchmarks.__path__)]
    kinds = {name: importlib.import_module(f"{benchmarks.__name__}.{name}") for name in names}
    clips, drawn, mllms = (
        [name for name in names if kinds[name].MODEL == model] for model in ("clip", "autoencoder", "mllm")
    )
    assert drawn == ["reconstruction"]
    assert {"detail", "mmvp_vlm", "probe", "retrieval", "segmentation", "sugarcrepe", "zeroshot"} <= {*clips}
    assert mllms == [
        "cv_bench", "gqa", "hallusion", "mmbench", "mme", "mmvp", "naturalbench", "pope", "scienceqa",
    ]  # fmt: skip
    for models, section, own in ((("clip", "autoencoder"), Evaluate, clips + drawn), (("mllm",), Ask, mllms)):
        assert all(get_benchmark(f"{name}-set", *models).file is kinds[name] for name in own)
        fields = {field.name for field in dataclasses.fields(section)}
        assert fields & {*names} == {name for name in own if hasattr(kinds[name], "Options")}


def test_measures_each_role_by_its_own_model(tiny) -> None:
    """The scores of a role are those of its model, and tell whose they are."""
    clip, folder = load_clip(tiny.backbones / "clip"), tiny.benchmarks / "mmvp_vlm"
    other = load_clip(tiny.backbones / "clip")
    for parameter in other.model.visual.parameters():
        parameter.data = parameter.data.flip(0)
    subjects = {
        role: Subject(model=model, method=role, encoder_sha256=role)
        for role, model in (("reference", clip), ("tuned", other))
    }
    scores = measure(get_benchmark("mmvp_vlm", "clip"), subjects, folder, tiny.section(Evaluate, "evaluate"))
    found = {each.role: each for each in scores}
    for role, model in (("reference", clip), ("tuned", other)):
        assert {item.id: item.value for item in found[role].items} == naive_mmvp(model, folder)
        assert (found[role].method, found[role].encoder_sha256) == (role, role)
    assert found["reference"].items != found["tuned"].items


def test_data_hash_sees_names_and_contents(tmp_path) -> None:
    """Renaming a file, changing a pixel or adding a file changes the hash; copying the folder does not."""
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "1.png")
    first = data_sha256(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert data_sha256(tmp_path / "b") == first
    (tmp_path / "b/1.png").rename(tmp_path / "b/2.png")
    Image.new("RGB", (4, 4), "white").save(folder / "1.png")
    assert len({first, data_sha256(tmp_path / "b"), data_sha256(folder)}) == 3
    with pytest.raises(UserError, match="no benchmark data"):
        data_sha256(tmp_path / "none")


def test_an_encoder_that_was_not_made_here_can_be_scored(tiny, tmp_path) -> None:
    """A CLIP folder without a lineage, as `un2clip convert` writes, is scored beside the reference as imported."""
    made = {"backbones": tiny.backbones, "encoder": tiny.backbones / "clip", "benchmarks": tiny.benchmarks}
    how = {"benchmark": "zeroshot", "device": "cpu", "checkpoints": ""}
    evaluate(tiny.section(Evaluate, "evaluate"), **how, **made, scores=tmp_path)
    reference, tuned = (load_scores(tmp_path / f"{role}.json") for role in ROLES)
    assert (reference.method, tuned.method) == ("reference", "imported")
    assert reference.items == tuned.items and reference.protocol.startswith("fp32; top-1")
