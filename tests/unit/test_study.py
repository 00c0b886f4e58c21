import json
import re

import pytest

from un2clip.config import UserError, merge
from un2clip.report import compare_scores
from un2clip.scores import Item, Scores
from un2clip.study import study, table


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


def test_other_numbers_are_refused(done) -> None:
    """A folder begun with other numbers is not mixed with these; more seeds and methods are fine."""
    params, to = done
    with pytest.raises(UserError, match="made with other numbers"):
        study(merge(params, {"finetune": {"batch_size": 8}}), to)


def test_table_by_hand() -> None:
    """Two seeds of one method: differences of +50 and 0 points, mean 25, sample deviation 35.4."""

    def scores(role: str, values: list[float]) -> Scores:
        items = tuple(Item(id=str(i), type="ab"[i % 2], value=value) for i, value in enumerate(values))
        return Scores(
            benchmark="pairs",
            role=role,
            method="m",
            unit="%",
            protocol="",
            data_sha256="d",
            encoder_sha256=role,
            items=items,
        )

    before = scores("reference", [1, 0, 0, 0])
    results = [
        (seed, "m", {"pairs": compare_scores(before, scores("tuned", after), confidence=0.95, resamples=100, seed=0)})
        for seed, after in ((0, [1, 1, 1, 0]), (1, [1, 0, 0, 0]))
    ]
    lines = table(results).splitlines()
    row = next(line for line in lines if line.startswith("| m |"))
    assert re.match(
        r"\| m \| 25\.0 → 75\.0 \(\+50\.0, .*\) \| 25\.0 → 25\.0 \(\+0\.0, .*\) \| \+25\.0 \| 35\.4 \|", row
    )
    assert lines[-1] == "| m | 50.0 → 75.0 | 0.0 → 25.0 |"
