"""The pages of results: docs/study is one study's, and docs/LOG.md can be read."""

import json
import re
import shutil
from pathlib import Path

import pytest

from un2clip.config import read_params
from un2clip.files.texts import read_json
from un2clip.study.ranking import Ranking, ranking_table
from un2clip.study.run import study
from un2clip.study.seeds import Spread, _Numbers

ROOT = Path(__file__).parents[2]
SUMMARY = json.loads((ROOT / "docs/study/summary.json").read_text())
PAGE = (ROOT / "docs/study/study.md").read_text()
LOG = (ROOT / "docs/LOG.md").read_text()
LABELS = set(re.findall(r"^\[([^]]+)\]: #\S+$", LOG, re.M))
#: Of a seed's cell, `reference → tuned (difference, low to high)`.
CELL = re.compile(r"([\d.]+) → ([\d.]+) \(([+-][\d.]+), [+-][\d.]+ to [+-][\d.]+\)")


def _rows(benchmark: str) -> list[list[str]]:
    """The cells of the benchmark's first table in docs/study/study.md, without its head."""
    section = re.search(rf"^### {re.escape(benchmark)} \(.*\n\n((?:\|.*\n)+)", PAGE, re.M)
    assert section, benchmark
    return [line.strip("| ").split(" | ") for line in section[1].splitlines()[2:]]


@pytest.mark.parametrize("benchmark", dict.fromkeys(line["benchmark"] for line in SUMMARY["changes"]))
def test_per_seed_table_agrees_with_the_summary(benchmark: str) -> None:
    """The columns over the seeds are summary.json's to the letter; the seeds' own have its means, but for rounding."""
    lines = [line for line in SUMMARY["changes"] if line["benchmark"] == benchmark]
    rows = _rows(benchmark)
    assert [method for method, *_ in rows] == [line["method"] for line in lines]
    for line, (_, *seeds, mean, deviation, interval, certain) in zip(lines, rows, strict=True):
        show = _Numbers(line["unit"])
        spread = Spread(**{name: line[name] for name in ("mean", "deviation", "low", "high", "seeds", "certain")})
        assert (mean, deviation, interval, certain) == show.spread(spread), line["method"]
        assert f"### {benchmark} ({show.name}), n = " in PAGE and len(seeds) == spread.seeds
        cells = [CELL.fullmatch(cell) for cell in seeds]
        assert all(cells), line["method"]
        digits, scale = len(mean.partition(".")[2]), 1000.0 if line["unit"] == "mse" else 1.0
        for i, name in enumerate(("reference", "tuned", "mean"), start=1):
            printed = sum(float(cell[i]) for cell in cells if cell) / len(cells)
            assert printed == pytest.approx(scale * line[name], abs=0.501 * 10.0**-digits), (line["method"], name)


def test_ranking_table_is_the_summarys() -> None:
    """docs/study/study.md ends with the ranking table that docs/study/summary.json gives, to the byte."""
    detail = read_params(ROOT / "params.yaml")["study"]["detail"]
    found = [
        Ranking(**each | {"of_seed": {int(seed): value for seed, value in each["of_seed"].items()}})
        for each in SUMMARY["rankings"]
    ]
    assert PAGE.endswith("|\n\n" + ranking_table(found, detail, SUMMARY["confidence"]))


@pytest.mark.parametrize("kept", sorted(path.parent.name for path in (ROOT / "docs/study").glob("*/params.json")))
def test_the_pages_of_a_study_are_what_its_runs_give(kept: str, tmp_path: Path) -> None:
    """Tables, summary and figure, to the byte, where every run is there, so that none is made."""
    folder = ROOT / "docs/study" / kept
    params = read_json(folder / "params.json")
    names = (*params["study"]["methods"], *params["study"]["variants"])
    runs = (folder / "runs" / f"seed{seed}" / f"{name}.json" for seed in params["study"]["seeds"] for name in names)
    if not all(run.is_file() for run in runs):
        pytest.skip(f"docs/study/{kept} is not complete yet")
    for name in ("params.json", "runs"):
        (shutil.copytree if name == "runs" else shutil.copy)(folder / name, tmp_path / name)
    study(params, tmp_path, tmp_path / "work")
    for name in ("study.md", "summary.json", "study.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_log_opens_with_questions() -> None:
    """docs/LOG.md opens with a table of questions, and each answer has a link to its entry."""
    lines = LOG.splitlines()
    start = lines.index("| question | answer; changes against the untouched encoder | entry |")
    table = lines[start + 2 : lines.index("", start)]
    assert start < 10 <= len(table)
    assert all(set(re.findall(r"\[([^]]+)\]", row)) & LABELS for row in table)


def test_lines_of_the_log_can_be_read() -> None:
    """No line of docs/LOG.md, the tables' included, has more than 200 characters."""
    assert [line for line in LOG.splitlines() if len(line) > 200] == []
