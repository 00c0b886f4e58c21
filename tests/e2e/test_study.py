import json

import pytest

from un2clip.config import UserError, merge
from un2clip.study import study


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A study of one seed and two methods at toy size, and its numbers."""
    params = tiny.params | {"study": {"seeds": [5], "methods": ["un2clip", "align"]}}
    to = tmp_path_factory.mktemp("study")
    study(params, to)
    return params, to


def test_every_method_is_scored_on_every_benchmark(done) -> None:
    """One row a seed and method, each with the diffusion loss and all benchmarks; `align` leaves the encoder alone."""
    params, to = done
    rows = json.loads((to / "study.json").read_text())
    assert [(row["seed"], row["method"]) for row in rows] == [(5, "un2clip"), (5, "align")]
    assert all(set(row["benchmarks"]) == {"diffusion_loss", *params["benchmarks"]} for row in rows)
    assert rows[1]["benchmarks"]["diffusion_loss"]["whole"]["difference"]["changed"] == 0
    assert rows[0]["benchmarks"]["diffusion_loss"]["whole"]["difference"]["changed"] > 0


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
