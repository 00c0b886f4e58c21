import json

import pytest

from un2clip.config import merge
from un2clip.errors import UserError
from un2clip.study.run import study


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A study of one seed, two methods and one shorter training at toy size, and its numbers."""
    section = {"seeds": [5], "methods": ["un2clip", "align"], "lengths": [1]}
    params = tiny.params | {"study": tiny.params["study"] | section}
    to = tmp_path_factory.mktemp("study")
    study(params, to)
    return params, to


def test_every_method_is_scored_on_every_benchmark(done) -> None:
    """One row a seed and method, each with the diffusion loss and all benchmarks; `align` leaves the encoder alone."""
    params, to = done
    rows = json.loads((to / "study.json").read_text())
    assert [(row["seed"], row["method"]) for row in rows] == [(5, "un2clip"), (5, "align"), (5, "un2clip@1")]
    assert all(set(row["benchmarks"]) == {"diffusion_loss", *params["benchmarks"]} for row in rows)
    assert rows[1]["benchmarks"]["diffusion_loss"]["whole"]["difference"]["changed"] == 0
    assert rows[0]["benchmarks"]["diffusion_loss"]["whole"]["difference"]["changed"] > 0


def test_a_shorter_training_is_a_checkpoint_of_its_own(done) -> None:
    """`un2clip@1` trained one step by the row un2clip, and the study's other files speak of all three."""
    _, to = done
    lineage = json.loads((to / "seed5/un2clip@1/encoder/lineage.json").read_text())
    assert (lineage["method"], lineage["steps_done"]) == ("un2clip", 1)
    content = json.loads((to / "summary.json").read_text())
    assert {line["method"] for line in content["changes"]} == {"un2clip", "align", "un2clip@1"}
    assert [each["checkpoints"] for each in content["rankings"]][::2] == [
        ["un2clip", "un2clip@1"],
        ["un2clip", "align", "un2clip@1"],
    ]
    assert "### Does the diffusion loss rank checkpoints as mmvp_vlm does?" in (to / "study.md").read_text()
    drawn = (to / "study.svg").read_text()
    assert "update-generator" not in drawn and all(
        word in drawn for word in ("reference", "un2clip", "align", "zeroshot")
    )


def test_what_is_done_is_not_done_again(done) -> None:
    """A second call runs no stage, and a stage whose output is gone runs alone."""
    params, to = done
    log = to / "seed5/seconds.jsonl"
    before = log.read_text()
    study(params, to)
    assert log.read_text() == before
    (to / "seed5/align/scores/zeroshot").rename(to / "elsewhere")
    study(params, to)
    assert [json.loads(line)["stage"] for line in log.read_text().removeprefix(before).splitlines()] == ["evaluate"]


def test_other_numbers_are_refused_by_name(done) -> None:
    """A folder begun with other numbers is not mixed with these; which ones is said, also of one that is new."""
    params, to = done
    with pytest.raises(UserError, match=r"other numbers \(finetune.batch_size 16 there, 8 now\)"):
        study(merge(params, {"finetune": {"batch_size": 8}}), to)
    with pytest.raises(
        UserError, match=r"other numbers \(finetune.new absent there, 1 now\).* add it to .*params.json"
    ):
        study(params | {"finetune": params["finetune"] | {"new": 1}}, to)
    with pytest.raises(UserError, match=r"other numbers \(finetune.compute.precision fp32 there, bf16 now\)"):
        study(merge(params, {"finetune": {"compute": {"precision": "bf16"}}}), to)
    log = (to / "seed5/seconds.jsonl").read_text()
    study(merge(params, {"finetune": {"compute": {"checkpoint_every": 7}}, "promote": {"champion": "auto"}}), to)
    assert (to / "seed5/seconds.jsonl").read_text() == log, "how it is computed, or another stage, decides nothing here"


def test_the_figures_benchmarks_must_be_measured(done) -> None:
    """A benchmark that is not run can be neither drawn nor ranked by."""
    params, to = done
    with pytest.raises(UserError, match="must be of mmvp_vlm, zeroshot, segmentation, got sugarcrepe"):
        study(merge(params, {"study": {"detail": "sugarcrepe"}}), to)
