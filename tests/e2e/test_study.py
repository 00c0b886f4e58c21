import dataclasses
import functools
import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from un2clip.config import build, merge
from un2clip.errors import UserError
from un2clip.evidence.scores import load_scores
from un2clip.stages import run_stage, stage_params
from un2clip.stages.compare import Compare
from un2clip.stages.diffusion_loss import diffusion_loss, diffusion_loss_knowing
from un2clip.stages.evaluate import evaluate, evaluate_knowing
from un2clip.study.run import read_by_languages, study
from un2clip.study.variants import check_variant, varied

SHORT, RANDOM = "un2clip@phases.tune.steps=1", "un2clip@random"
ROWS = ["un2clip", "align", SHORT, RANDOM]


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A study of one seed, two methods, a shorter training and a random change at toy size: numbers, results, work."""
    section = {"seeds": [5], "methods": ["un2clip", "align"], "variants": [SHORT, RANDOM]}
    params = tiny.params | {"study": tiny.params["study"] | section}
    to = tmp_path_factory.mktemp("study")
    study(params, to / "results", to / "work")
    return params, to / "results", to / "work"


def test_every_method_is_scored_on_every_benchmark(done) -> None:
    """One file a run, each with the diffusion loss and all benchmarks; `align` leaves the encoder alone."""
    params, to, work = done
    runs = {name: json.loads((to / f"runs/seed5/{name}.json").read_text()) for name in ROWS}
    assert len(list((to / "runs").rglob("*.json"))) == len(ROWS)
    of = {name: {each["benchmark"]: each["whole"] for each in run["benchmarks"]} for name, run in runs.items()}
    assert all(set(each) == {"diffusion_loss", *params["benchmarks"]} for each in of.values())
    changed = {name: each["diffusion_loss"]["difference"]["changed"] for name, each in of.items()}
    assert changed["align"] == 0 and all(changed[name] > 0 for name in ROWS if name != "align")
    assert all(run["seconds"] > 0 for name, run in runs.items() if name != RANDOM) and runs[RANDOM]["seconds"] is None
    lineage = json.loads((work / "seed5/un2clip/encoder/lineage.json").read_text())
    assert lineage["encoder_sha256"] == runs["un2clip"]["encoder_sha256"]


def test_the_reference_is_measured_once_in_a_world(done, tmp_path) -> None:
    """What a later row has is, byte for byte, what its stages give alone: pictures, scores, the loss."""
    params, _, work = done
    world = work / "seed5"
    made = {name: world / name for name in ("shards", "backbones", "latents")}
    of_row = {"encoder": world / SHORT / "encoder", "device": "cpu"}
    section = stage_params("diffusion_loss", params["diffusion_loss"])
    diffusion_loss(section, seed=5, **made, **of_row, scores=tmp_path / "diffusion_loss")
    asked = {"benchmarks": world / "benchmarks", "backbones": world / "backbones", "checkpoints": "", **of_row}
    section = stage_params("evaluate", params["evaluate"])
    for name in params["benchmarks"]:
        evaluate(section, benchmark=name, **asked, scores=tmp_path / name)
    alone = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(alone) >= 8
    for path in alone:
        assert path.read_bytes() == (world / SHORT / "scores" / path.relative_to(tmp_path)).read_bytes(), path.name


def test_known_scores_are_taken_only_where_they_fit(done, tmp_path) -> None:
    """Of the same encoder, data and protocol they are written as they are; of others the reference is measured."""
    params, _, work = done
    world, given = work / "seed5", {"device": "cpu"}
    given |= {"backbones": world / "backbones", "encoder": world / "un2clip/encoder"}
    of = {
        "zeroshot": functools.partial(
            evaluate_knowing, stage_params("evaluate", params["evaluate"]), benchmark="zeroshot", checkpoints="",
            benchmarks=world / "benchmarks", **given,
        ),
        "diffusion_loss": functools.partial(
            diffusion_loss_knowing, stage_params("diffusion_loss", params["diffusion_loss"]), seed=5,
            shards=world / "shards", latents=world / "latents", **given,
        ),
    }  # fmt: skip
    for name, stage in of.items():
        kept = world / "un2clip/scores" / name / "reference.json"
        true = load_scores(kept)
        other = [dataclasses.replace(item, value=abs(1 - item.value)) for item in true.items]
        marked = dataclasses.replace(true, items=tuple(other))
        stage(known=[marked], scores=tmp_path / name)
        assert load_scores(tmp_path / name / "reference.json") == marked
        for change in ("encoder_sha256", "data_sha256", "protocol"):
            stage(known=[dataclasses.replace(marked, **{change: "x"})], scores=tmp_path / name)
            assert (tmp_path / name / "reference.json").read_bytes() == kept.read_bytes(), change


def test_a_shorter_training_is_a_checkpoint_of_its_own(done) -> None:
    """The variant trained one step by the row un2clip, and the study's other files speak of all."""
    _, to, work = done
    lineage = json.loads((work / f"seed5/{SHORT}/encoder/lineage.json").read_text())
    assert (lineage["method"], lineage["steps_done"]) == ("un2clip", 1)
    content = json.loads((to / "summary.json").read_text())
    assert {line["method"] for line in content["changes"]} == set(ROWS)
    assert [each["checkpoints"] for each in content["rankings"]][::2] == [["un2clip", SHORT], ROWS]
    assert "### Does the diffusion loss rank checkpoints as mmvp_vlm does?" in (to / "study.md").read_text()
    drawn = (to / "study.svg").read_text()
    assert "update-generator" not in drawn and all(
        word in drawn for word in ("reference", "un2clip", "align", "zeroshot")
    )


def test_a_random_change_is_as_long_as_the_trainings_and_has_another_direction(done) -> None:
    """Every tensor of the image tower, and no other."""
    _, _, work = done
    world = work / "seed5"
    reference, tuned, random = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (world / "backbones/clip", world / "un2clip/encoder", world / RANDOM / "encoder")
    )
    moved = [name for name, value in reference.items() if not torch.equal(value, tuned[name])]
    assert moved and all(name.startswith("visual.") for name in moved)
    for name, value in reference.items():
        change, other = (each[name].double() - value.double() for each in (tuned, random))
        torch.testing.assert_close(other.norm(), change.norm(), rtol=1e-3, atol=1e-6)
    cosines = [
        torch.cosine_similarity(
            (tuned[name] - reference[name]).flatten(), (random[name] - reference[name]).flatten(), dim=0
        )
        for name in moved
        if reference[name].numel() > 1000
    ]
    assert torch.stack(cosines).abs().max() < 0.2


def test_what_is_done_is_not_done_again(done) -> None:
    """A second call runs no stage; a run without a file is made of what its work has left, a kept one of nothing."""
    params, to, work = done
    log = work / "seed5/seconds.jsonl"
    before, kept = log.read_text(), (to / "runs/seed5/align.json").read_text()
    study(params, to, work)
    assert log.read_text() == before
    shutil.rmtree(work / "seed5/align/scores/zeroshot")
    (to / "runs/seed5/align.json").unlink()
    study(params, to, work)
    stages = [json.loads(line)["stage"] for line in log.read_text().removeprefix(before).splitlines()]
    assert stages == ["evaluate", "evaluate"], "begun, and done"
    assert (to / "runs/seed5/align.json").read_text() == kept
    page = (to / "study.md").read_text()
    study(params, to, work.with_name("elsewhere"))
    assert not (work.with_name("elsewhere") / "seed5").exists()
    assert (to / "study.md").read_text() == page


def test_seconds_of_a_run_that_was_cut_off_are_unknown(done) -> None:
    """Its file says none, rather than those of its last part."""
    params, to, work = done
    kept = to / "runs/seed5" / f"{SHORT}.json"
    file, encoder = json.loads(kept.read_text()), work / "seed5" / SHORT / "encoder"
    shutil.rmtree(encoder)  # as if it had been begun and not ended
    kept.unlink()
    study(params, to, work)
    assert json.loads(kept.read_text()) == file | {"seconds": None}


def test_other_numbers_are_refused_by_name(done) -> None:
    """A folder begun with other numbers is not mixed with these; which ones is said, also of one that is new."""
    params, to, work = done
    with pytest.raises(UserError, match=r"results holds .* other numbers \(finetune.batch_size 16 there, 8 now\)"):
        study(merge(params, {"finetune": {"batch_size": 8}}), to, work)
    with pytest.raises(UserError, match=r"work holds .* other numbers \(finetune.batch_size 16 there, 8 now\)"):
        study(merge(params, {"finetune": {"batch_size": 8}}), to.with_name("new"), work)
    with pytest.raises(
        UserError, match=r"other numbers \(finetune.new absent there, 1 now\).* add it to .*params.json"
    ):
        study(params | {"finetune": params["finetune"] | {"new": 1}}, to, work)
    with pytest.raises(UserError, match=r"other numbers \(finetune.compute.precision fp32 there, bf16 now\)"):
        study(merge(params, {"finetune": {"compute": {"precision": "bf16"}}}), to, work)
    log = (work / "seed5/seconds.jsonl").read_text()
    how: dict[str, Any] = {"finetune": {"compute": {"checkpoint_every": 7}}, "evaluate": {"processes": 2}}
    study(merge(params, how | {"promote": {"champion": "auto"}}), to, work)
    assert (work / "seed5/seconds.jsonl").read_text() == log, "how it is computed, or another stage, decides nothing"


def test_the_figures_benchmarks_must_be_measured(done) -> None:
    """A benchmark that is not run can be neither drawn nor ranked by."""
    params, to, work = done
    with pytest.raises(UserError, match="must be of mmvp_vlm, zeroshot, segmentation, got sugarcrepe"):
        study(merge(params, {"study": {"detail": "sugarcrepe"}}), to, work)


def test_a_variant_is_one_other_number(tiny) -> None:
    """Below `finetune`, in JSON; what is none is said."""
    changed = varied(tiny.params, "un2clip@phases.tune.noise.noise_level=[150, 300]")
    assert changed["finetune"]["phases"]["tune"]["noise"]["noise_level"] == [150, 300]
    assert merge(changed, {"finetune": tiny.params["finetune"]}) == dict(tiny.params)
    for wrong, said in {
        "un2clip": "a variant is ROW@KEY=VALUE",
        "un2clip@": "a variant is",
        "un2clip@anchors.cosines=": "a variant is",
        "un2clap@random": "unknown method 'un2clap'",
    }.items():
        with pytest.raises((ValueError, UserError), match=said):
            check_variant(wrong)
    with pytest.raises(UserError, match="unknown parameter finetune.phases.tune.step;"):
        varied(tiny.params, "un2clip@phases.tune.step=1")
    with pytest.raises(UserError, match=r"un2clip@anchors.cosines=a lot"):
        varied(tiny.params, "un2clip@anchors.cosines=a lot")


def test_language_models_of_three_seeds_read_both_encoders(done, tmp_path) -> None:
    """The reference's are trained once in a world; the spread over the seeds is known, and nothing untrained gains."""
    params, _, work = done
    questions = {"pictures": 24, "turns": 2, "of_each": 1}
    params = merge(params, {"shapes": {"questions": questions}}) | {"language_seeds": [0, 1, 2], "questions": ["pope"]}
    folders = {name: tmp_path / name for name in ("images", "instructions", "benchmarks")}
    run_stage("shapes", params["shapes"], seed=5, **folders)
    (tmp_path / "backbones").symlink_to(work / "seed5/backbones")
    compare = build(Compare, params["compare"], "compare")
    for row in ("un2clip", "align"):
        (tmp_path / row).mkdir()
        (tmp_path / row / "encoder").symlink_to(work / "seed5" / row / "encoder")
        (found,) = read_by_languages(params, row, 5, tmp_path, compare)
        assert (found.benchmark, [each.seed for each in found.seeds]) == ("pope", [0, 1, 2])
        assert found.spread is not None and found.reading == "noise"
    assert found.difference.mean == 0 and found.spread == 0  # `align` leaves the encoder alone
    stages = [json.loads(line)["output"] for line in (tmp_path / "seconds.jsonl").read_text().splitlines()]
    assert set(stages) >= {f"{folder}/{seed}" for folder in ("languages", "align/languages") for seed in range(3)}
    assert sum(name == "languages/0" for name in stages) == 2  # when it begins and when it ends
    without = params | {"shapes": done[0]["shapes"], "study": done[0]["study"]}
    with pytest.raises(UserError, match="shapes.questions makes no questions"):
        study(without, tmp_path / "to", tmp_path / "work")
