"""What the README promises exists: commands, files and links."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from un2clip.__main__ import is_stage, main, new_parser, stage_parser
from un2clip.config import read_params
from un2clip.methods.table import METHODS
from un2clip.stages import STAGES, get_stage, stage_params
from un2clip.study.figure import plot_changes

ROOT = Path(__file__).parents[2]
SUMMARY = json.loads((ROOT / "docs/study/summary.json").read_text())
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    ROOT / "data/README.md",
    ROOT / "pipelines/README.md",
    ROOT / "components/README.md",
]
HISTORY = [ROOT / "CHANGELOG.md"]  # names commands of older versions too
#: What ends a command in a line of the shell, or begins a remark.
END = re.compile(r"&&|[|;>#)]")


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The code of a page, and whether it is a line to type (indented or fenced) or stands within a sentence."""
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines
    for fenced in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        yield from ((line, True) for line in fenced.splitlines())
    for line in re.findall(r"^ {4,}(\S.*)$", text, re.M):
        yield line, True
    for span in re.findall(r"`([^`\n]+)`", text):
        yield span, False


def calls(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The arguments of every call of un2clip that a page has, and whether it is a whole command to type."""
    for code, typed in pieces(page.read_text()):
        for found in re.finditer(r"(?:^|[\s(/])un2clip +(?=\w)", code):
            yield shlex.split(END.split(code[found.end() :])[0]), typed


def test_make_targets_exist() -> None:
    """Every `make WORD` of the documentation is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    said = {
        word
        for page in [*PAGES, *HISTORY]
        for code, _ in pieces(page.read_text())
        for word in re.findall(r"^make ([a-z0-9-]+)", code)
    }
    assert {"setup", "demo", "test", "same-numbers"} <= said <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_parses(page: Path, capsys, monkeypatch) -> None:
    """Each `un2clip WORD`, in a sentence too, is a command that has each --flag; a line to type parses as it stands."""
    monkeypatch.chdir(ROOT)
    for args, typed in calls(page):
        word, flags = args[0], [each.partition("=")[0] for each in args if each.startswith("--") and each != "--..."]
        shown = f"{page.name}: un2clip {shlex.join(args)}"
        with pytest.raises(SystemExit) as ended:
            main([word, *(each for each in args if is_stage([word, each]) and each.startswith("--")), "--help"])
        assert ended.value.code == 0, f"{shown}: there is no such command"
        listed = capsys.readouterr().out
        assert all(re.search(rf"{flag}\b", listed) for flag in flags), f"{shown}: a flag is none"
        if typed and not any("..." in each for each in args):
            try:
                stage_parser(word).parse_args(args[1:]) if is_stage(args) else new_parser().parse_args(args)
            except SystemExit:
                pytest.fail(f"{shown}: {capsys.readouterr().err}")


def test_commands_are_found_and_a_misspelt_one_is_seen(tmp_path: Path) -> None:
    """In sentences, in lines to type, behind a path, within $( ): all of them, and words of prose are none."""
    page = tmp_path / "page.md"
    page.write_text(
        "With un2clip the loss falls, as `un2clip ftech` says and `un2clip` does not.\n\n"
        "    make setup && .venv/bin/un2clip docter --json   # what is here\n"
        "    dvc exp run $(un2clip flags a.yaml \\\n        b.yaml)\n\n"
        "    un2clip flags c.yaml | xargs -r dvc exp run\n\n"
        "```sh\nun2clip pinn org/name > pins.yaml\n```\n"
    )
    assert sorted(calls(page)) == [
        (["docter", "--json"], True), (["flags", "a.yaml", "b.yaml"], True),
        (["flags", "c.yaml"], True), (["ftech"], False), (["pinn", "org/name"], True),
    ]  # fmt: skip
    assert sum(len(list(calls(each))) for each in PAGES) > 40, "the pages have many"


def test_flags_are_arguments_for_dvc(capsys, monkeypatch) -> None:
    """`un2clip flags` turns an overlay into arguments of `dvc exp run`."""
    monkeypatch.chdir(ROOT)
    assert main(["flags", "configs/photos.yaml"]) == 0
    assert "images=data/photos" in shlex.split(capsys.readouterr().out)


def test_a_command_that_was_renamed_is_refused_with_its_new_name(capsys) -> None:
    assert main(["encoder", "--to=x"]) == 2
    assert "`un2clip encoder` is `un2clip convert` now" in capsys.readouterr().err


@pytest.mark.parametrize("page", [*PAGES, *HISTORY], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Each link into the project is a file that exists, and its anchor a heading of that page."""
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)$", text, re.M)
    for target in (each for each in targets if not re.match(r"https?://", each)):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], target


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
    params = read_params(ROOT / "params.yaml", [overlay])
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
    section = read_params(ROOT / "params.yaml")["study"]
    drawn = plot_changes(SUMMARY["changes"], section["language"], section["detail"])
    assert (ROOT / "docs/study/study.svg").read_bytes() == drawn
    assert "(docs/study/study.svg)" in (ROOT / "README.md").read_text()
