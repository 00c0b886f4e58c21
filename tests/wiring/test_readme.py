"""What the README promises exists: commands, files and links."""

import json
import re
import shlex
from pathlib import Path

import pytest

from un2clip.__main__ import main
from un2clip.config import merge, read_yaml
from un2clip.methods.table import METHODS
from un2clip.stages import STAGES, get_stage, stage_params
from un2clip.study.figure import plot_changes

ROOT = Path(__file__).parents[2]
SUMMARY = json.loads((ROOT / "docs/study/summary.json").read_text())
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data/README.md",
    ROOT / "pipelines/README.md",
]
COMMANDS = [line.strip() for page in PAGES for line in page.read_text().splitlines() if line.startswith("    ")]


def test_make_targets_exist() -> None:
    """Every `make WORD` of the documentation is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    said = {word for command in COMMANDS for word in re.findall(r"^make ([a-z0-9-]+)", command)}
    assert said and said <= targets


def test_un2clip_commands_parse(capsys, monkeypatch) -> None:
    """Every `un2clip WORD` of the documentation is a command, and `un2clip flags` gives words for its overlay."""
    said = {word for page in PAGES for word in re.findall(r"un2clip ([a-z_]+)(?= |`|$)", page.read_text(), re.M)}
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    commands = {
        word for word in said if word in ("export", "flags", "study", "aggregate", "fetch", "download", "show", *STAGES)
    }
    assert {"export", "flags"} <= commands and all(word in listed for word in commands)
    assert main(["flags", "configs/photos.yaml"]) == 0
    assert "images=data/photos" in shlex.split(capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Each `path/in/backticks` that looks like one of the project's files is there."""
    made = ("data/", "reports/", "models/", "scores/", "local_outputs/")
    for name in re.findall(r"`((?:src|configs|pipelines|components|docs|tests|bin)/[\w./-]+)`", page.read_text()):
        assert name.startswith(made) or (ROOT / name).exists(), name


@pytest.mark.parametrize("overlay", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_overlays_are_short_and_fit(overlay: Path) -> None:
    """An overlay is at most 20 lines, changes known parameters only, and every stage reads the result."""
    assert len(overlay.read_text().splitlines()) <= 20
    params = merge(read_yaml(ROOT / "params.yaml"), read_yaml(overlay))
    for name in STAGES:
        stage_params(name, params[name])
    assert params["method"] in METHODS


def test_docstrings_of_stages_name_every_argument() -> None:
    """`un2clip STAGE --help` explains: each stage's docstring has a line for each of its paths."""
    for name in STAGES:
        stage = get_stage(name)
        for argument in (key for key in stage.__annotations__ if key not in ("params", "return")):
            assert re.search(rf"^ +{argument}\b.*:", stage.__doc__ or "", re.M), (name, argument)


def test_numbers_of_the_results_are_the_studys() -> None:
    """README's result table has the methods and the mean changes of docs/study/summary.json."""
    results = re.findall(
        r"^\| ([\w-]+)[, (].* \| (.+) \| (.+) \| (.+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.M
    )
    means = {(line["benchmark"], line["method"]): line["mean"] for line in SUMMARY["changes"]}
    assert [method for method, *_ in results] == [
        method for name, method in means if name == "mmvp_vlm" and "@" not in method
    ]
    for method, *numbers in results:
        loss, *points = (means[name, method] for name in ("diffusion_loss", "mmvp_vlm", "segmentation", "zeroshot"))
        assert numbers == [f"{1000 * loss:+.3f}", *(f"{each:+.1f}" for each in points)]


def test_the_figure_is_drawn_from_the_same_numbers() -> None:
    """docs/study/study.svg is what docs/study/summary.json gives, to the byte; README shows it."""
    section = read_yaml(ROOT / "params.yaml")["study"]
    drawn = plot_changes(SUMMARY["changes"], section["language"], section["detail"])
    assert (ROOT / "docs/study/study.svg").read_bytes() == drawn
    assert "(docs/study/study.svg)" in (ROOT / "README.md").read_text()
