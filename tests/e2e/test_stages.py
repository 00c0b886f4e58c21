"""Stages on the tiny pipeline: what they write, what they refuse, and that the same inputs give the same bytes."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from un2clip.config import merge
from un2clip.datasets import loader
from un2clip.datasets.random_access import locate
from un2clip.decoders.kinds import load_decoder
from un2clip.errors import UserError
from un2clip.evaluation.measuring import Evaluate
from un2clip.evidence.scores import load_scores
from un2clip.hashes import file_sha256, tensors_sha256
from un2clip.methods.building import new_objective, probe
from un2clip.methods.conditions import CONDITIONS, load_condition
from un2clip.methods.objective import Reconstruction
from un2clip.methods.table import get_method
from un2clip.models.clip import encoder_sha256, load_clip, text_sha256
from un2clip.stages import run_stage
from un2clip.stages.backbones import Backbones, backbones
from un2clip.stages.diffusion_loss import DiffusionLoss, diffusion_loss
from un2clip.stages.evaluate import evaluate
from un2clip.stages.finetune import Finetune, finetune
from un2clip.stages.reconstruct import Reconstruct, reconstruct


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def given(tiny) -> dict[str, Path]:
    return {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents}


def tune(tiny, encoder: Path, method: str = "un2clip-anchored", **changes: object) -> Path:
    """Changes are of the section, or of its phase `tune` and what is like it."""
    section = tiny.params["finetune"]
    own = {key: value for key, value in changes.items() if key in section}
    tune = {key: value for key, value in changes.items() if key not in section}
    run_stage(
        "finetune",
        merge(merge(section, own), {"phases": {"tune": tune}}),
        method=method,
        seed=3,
        device="cpu",
        checkpoints="",
        **given(tiny),
        encoder=encoder,
    )
    return encoder


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory) -> Path:
    return tune(tiny, tmp_path_factory.mktemp("encoder") / "encoder", lr={"encoder": 1e-3})


def test_backbones_are_a_function_of_the_seed(tiny, tmp_path) -> None:
    """The stage run again gives the same bytes in every file, whatever the global random state."""
    torch.manual_seed(999)
    backbones(
        tiny.section(Backbones, "backbones"), seed=1, device="cpu", images=tiny.images, backbones=tmp_path / "again"
    )
    assert files(tmp_path / "again") == files(tiny.backbones)


def test_finetune_writes_a_drop_in_encoder(tiny, encoder: Path) -> None:
    """open_clip loads the folder, the image tower changed, the text tower is byte-identical, no pickle anywhere."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{encoder}")
    reference = load_clip(tiny.backbones / "clip").model
    assert text_sha256(model) == text_sha256(reference)
    assert not torch.equal(model.visual.proj, reference.visual.proj)
    assert set(files(encoder)) == {
        "open_clip_model.safetensors",
        "open_clip_config.json",
        "lineage.json",
        "history.json",
    }
    lineage = json.loads((encoder / "lineage.json").read_text())
    assert lineage["complete"] and lineage["steps_done"] == 3
    assert lineage["encoder_sha256"] == encoder_sha256(encoder) != lineage["parents"]["clip"]


def test_finetune_is_a_function_of_its_inputs(tiny, encoder: Path, tmp_path) -> None:
    """The same seed gives the same bytes."""
    assert files(tune(tiny, tmp_path / "again", lr={"encoder": 1e-3})) == files(encoder)


def test_update_generator_keeps_the_generator_it_trained(tiny, tmp_path) -> None:
    """Its directory loads as a generator and its U-Net is not the one it came from."""
    from un2clip.decoders import load_generator

    made = tune(tiny, tmp_path / "encoder", method="update-generator", lr={"decoder": 1e-3})
    ours, theirs = load_generator(made / "decoder").unet, load_generator(tiny.backbones / "unclip").unet
    assert not torch.equal(ours.conv_out.weight, theirs.conv_out.weight)


#: What each row moves, over all of its phases.
MOVED = {
    "diva": {"encoder", "condition"},
    "genhancer": {"encoder", "condition", "decoder"},
    "unilip": {"encoder", "condition", "decoder"},
    "unilip-high": {"encoder", "condition", "decoder"},
}


@pytest.mark.parametrize("method", MOVED)
def test_a_row_moves_its_own_parts_and_keeps_them(tiny, tmp_path, monkeypatch, method: str) -> None:
    """By hash: the named parts move and nothing else, and what trained is read back from beside the encoder."""
    made: list[Reconstruction] = []
    before: dict[str, str] = {}

    def hashes(objective: Reconstruction) -> dict[str, str]:
        return {name: tensors_sha256(part.state_dict()) for name, part in objective.parts().items()}

    def kept(*arguments: object, **named: object) -> Reconstruction:
        made.append(new_objective(*arguments, **named))
        before.update(hashes(made[-1]))
        return made[-1]

    monkeypatch.setattr("un2clip.stages.finetune.new_objective", kept)
    encoder = tune(tiny, tmp_path / "encoder", method=method)
    (objective,) = made
    after = hashes(objective)
    assert {name for name in before if before[name] != after[name]} == MOVED[method]

    clip, lineage = load_clip(encoder), json.loads((encoder / "lineage.json").read_text())
    assert tensors_sha256(clip.model.visual.state_dict()) == after["encoder"]
    assert text_sha256(clip.model) == text_sha256(load_clip(tiny.backbones / "clip").model)
    kept_at_last = {path.name for path in encoder.iterdir() if path.is_dir()} - {"aligned"}
    assert kept_at_last == MOVED[method] - {"encoder"}
    decoder = load_decoder(encoder / "decoder") if "decoder" in MOVED[method] else objective.decoder
    assert tensors_sha256(decoder.state_dict()) == tensors_sha256(objective.decoder.state_dict())
    row = get_method(method)
    condition = load_condition(encoder / "condition", probe(clip, CONDITIONS[row.condition]), decoder)
    assert tensors_sha256(condition.state_dict()) == after["condition"]
    phases = tiny.section(Finetune, "finetune").phases_of(row)
    assert lineage["complete"] and lineage["steps_done"] == sum(phase.steps for phase in phases)


def spoilt(tiny, to: Path, broken: int) -> Path:
    """The shards with so many images overwritten, as if they had been made so: their hashes agree."""
    shutil.copytree(tiny.shards, to)
    text = (to / "index.json").read_text()
    for tar in sorted((to / "train").glob("*.tar")):
        sha256, content = file_sha256(tar), bytearray(tar.read_bytes())
        for location in locate(tar)[:broken]:
            content[location.offset : location.offset + 8] = bytes(8)
        tar.write_bytes(content)
        broken -= len(locate(tar)[:broken])
        text = text.replace(sha256, file_sha256(tar))
    (to / "index.json").write_text(text)
    return to


@pytest.mark.parametrize(("broken", "stops"), [(1, False), (190, True)])
def test_a_training_that_cannot_read_its_images_stops(tiny, tmp_path, broken: int, stops: bool) -> None:
    """One of 192 is below 1 % and is counted; with two that can be read a training is no training."""
    section = merge(tiny.params["finetune"], {"phases": {"tune": {"steps": 12}}})
    names = {"shards": spoilt(tiny, tmp_path / "shards", broken), "backbones": tiny.backbones,
             "latents": tmp_path / "none", "encoder": tmp_path / "e"}  # fmt: skip
    (tmp_path / "none").mkdir()
    none = {"cached": False, "vae_sha256": "", "shards": {}, "sha256": {}}
    (tmp_path / "none/latents.json").write_text(json.dumps(none))
    words = {"method": "un2clip", "seed": 3, "device": "cpu", "checkpoints": ""}
    if stops:
        with pytest.raises(UserError, match=r"\d+ of the 16 images read so far are unreadable, more than fine"):
            run_stage("finetune", section, **words, **names)
        assert not (tmp_path / "e").exists()
    else:
        run_stage("finetune", section, **words, **names)
        lineage = json.loads((tmp_path / "e/lineage.json").read_text())
        assert lineage["complete"] and lineage["corrupt"] == 1


@pytest.mark.parametrize(("method", "phase", "rate"), [("un2clip", "tune", 1e30), ("genhancer", "genhancer-2", 1e15)])
def test_non_finite_loss_loses_nothing(tiny, tmp_path, method: str, phase: str, rate: float) -> None:
    """A rate that explodes is a UserError that names the step, and the last good weights are on the disk.

    Low-rank updates are merged into them too; their rate is lower, because the product of two must be finite.
    """
    changes = {phase: {"lr": {"encoder": rate}, "warmup_steps": 0, "steps": 30}}
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+ \(samples train.*last good one, are in"):
        tune(tiny, tmp_path / "e", method=method, phases=changes)
    assert all(torch.isfinite(p).all() for p in load_clip(tmp_path / "e").model.parameters())
    assert json.loads((tmp_path / "e" / "lineage.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("un3clip", {}, "unknown method 'un3clip'; known: un2clip, un2clip-anchored, un2clip-captions, "),
        ("un2clip", {"batch_size": 5000}, "holds 192 samples, fewer than one batch of 5000"),
        ("un2clip", {"batch_size": 0}, "finetune.batch_size must be at least 1, got 0"),
        ("un2clip", {"steps": 0}, r"finetune.phases.tune.steps must be at least 1, got 0"),
        ("un2clip", {"decay": "linear"}, "finetune.phases.tune.decay must be one of constant, cosine, got 'linear'"),
    ],
)
def test_finetune_refuses(tiny, tmp_path, method: str, changes: dict[str, object], message: str) -> None:
    """A mistake is one line before any training, and nothing is written."""
    with pytest.raises(UserError, match=message):
        tune(tiny, tmp_path / "e", method=method, **changes)
    assert not (tmp_path / "e").exists()


def test_missing_inputs_are_named(tiny, tmp_path) -> None:
    """Shards or backbones that are not there are a UserError with their path."""
    section, words = tiny.section(Finetune, "finetune"), {"method": "un2clip", "seed": 0, "device": "cpu"}
    for name, message in (("shards", r"index\.json"), ("backbones", "is not a CLIP"), ("latents", r"latents\.json")):
        with pytest.raises(UserError, match=message):
            paths = given(tiny) | {name: tmp_path / "none"}
            finetune(section, **words, checkpoints="", **paths, encoder=tmp_path / "e")


def test_damaged_checkpoint_is_named(tiny, tmp_path) -> None:
    """Half a safetensors file is a UserError, not a traceback."""
    shutil.copytree(tiny.backbones / "clip", tmp_path / "clip")
    weights = tmp_path / "clip/open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for load in (load_clip, encoder_sha256):
        with pytest.raises(UserError, match=r"clip"):
            load(tmp_path / "clip")


def diagnose(tiny, encoder: Path, to: Path) -> tuple[object, object]:
    section = tiny.section(DiffusionLoss, "diffusion_loss")
    diffusion_loss(section, seed=0, device="cpu", **given(tiny), encoder=encoder, scores=to)
    return load_scores(to / "reference.json"), load_scores(to / "tuned.json")


def test_the_same_encoder_twice_has_the_same_diffusion_loss(tiny, encoder: Path, tmp_path) -> None:
    """Both encoders meet one table of noises and timesteps: an untouched encoder gives exactly equal items."""
    untouched = tmp_path / "untouched"
    shutil.copytree(tiny.backbones / "clip", untouched)
    shutil.copy(encoder / "lineage.json", untouched)
    reference, tuned = diagnose(tiny, untouched, tmp_path / "same")
    assert reference.items == tuned.items and len(reference.items) == 24 * 4
    reference, tuned = diagnose(tiny, encoder, tmp_path / "other")
    assert reference.items != tuned.items
    assert [item.id for item in reference.items] == [item.id for item in tuned.items]
    assert (tmp_path / "other/diffusion_loss.png").is_file()


def test_diffusion_loss_bins_hold_their_timesteps(tiny, encoder: Path, tmp_path) -> None:
    """Every image meets one timestep of every bin."""
    reference, _ = diagnose(tiny, encoder, tmp_path / "d")
    assert {name: n for name, (_, n) in reference.per_type().items()} == {
        f"t {low}-{low + 249}": 24 for low in (0, 250, 500, 750)
    }


def test_evaluate_scores_both_encoders_on_one_data_set(tiny, encoder: Path, tmp_path) -> None:
    """Two files, one data hash, each with its own encoder's hash."""
    names = {"benchmarks": tiny.benchmarks, "backbones": tiny.backbones, "encoder": encoder, "scores": tmp_path}
    evaluate(tiny.section(Evaluate, "evaluate"), benchmark="zeroshot", device="cpu", checkpoints="", **names)
    reference, tuned = load_scores(tmp_path / "reference.json"), load_scores(tmp_path / "tuned.json")
    assert reference.data_sha256 == tuned.data_sha256 and reference.n == tuned.n == 36
    assert (reference.method, tuned.method) == ("reference", "un2clip-anchored")
    assert reference.encoder_sha256 == encoder_sha256(tiny.backbones / "clip")
    assert tuned.encoder_sha256 == encoder_sha256(encoder)


def test_reconstruct_draws_a_grid(tiny, encoder: Path, tmp_path) -> None:
    """A picture that is not empty, the same for the same seed and another for another."""
    pictures = []
    for seed in (0, 0, 1):
        names = {"shards": tiny.shards, "backbones": tiny.backbones, "encoder": encoder}
        reconstruct(
            tiny.section(Reconstruct, "reconstruct"), seed=seed, device="cpu", **names, reconstructions=tmp_path
        )
        pictures.append(np.asarray(Image.open(tmp_path / "grid.png")))
    assert pictures[0].std() > 5
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_the_generators_view_equals_open_clips_geometry() -> None:
    """Shortest side, centre crop, [-1, 1]: open_clip's own transform with mean and std 0.5 gives the same picture."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    theirs = open_clip.image_transform(32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    torch.testing.assert_close(loader.generator_view(32)(image), theirs(image), rtol=0, atol=1e-6)
