"""The script that damages files, at its smallest size; by hand it runs with thousands."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.robustness import mutations
from tests.robustness.cases import CASES, Case, make_world
from tests.robustness.mutations import LARGE, SAID, SAME, SILENT, TRACEBACK, WRONG, run, section, write_section


def test_one_mutation_of_every_kind_of_file(tiny, tmp_path: Path) -> None:
    """A sentence, or what the file says: no traceback, no minutes, no gigabytes, nothing silently other."""
    found = list(run(make_world(tiny, tmp_path / "world"), n=len(CASES), seed=0))
    assert [each for each in found if each.outcome in WRONG] == []
    assert {each.case for each in found} == {case.name for case in CASES}
    assert sum(each.outcome == SAID for each in found) > len(CASES) / 2


def careless(world: Path) -> Any:
    try:
        return json.loads((world / "a.json").read_text())
    except ValueError:
        return {}


def endless(world: Path) -> Any:
    while (world / "a.json").read_bytes() != b'{"a": [1, 2, 3]}':
        pass


def huge(world: Path) -> Any:
    if (world / "a.json").read_bytes() != b'{"a": [1, 2, 3]}':
        return len(b"x" * (3 << 29))


@pytest.mark.parametrize(
    ("read", "outcomes"),
    [
        (lambda world: json.loads((world / "a.json").read_text()), {TRACEBACK, SILENT}),
        (careless, {SILENT}),
        (endless, {LARGE}),
        (huge, {LARGE}),
    ],
    ids=["traceback", "silent", "slow", "large"],
)
def test_the_script_sees_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, outcomes: set[str]
) -> None:
    """Four readers that do each of the things that are looked for, and no sentence."""
    monkeypatch.setattr(mutations, "SECONDS", 0.2)
    (tmp_path / "a.json").write_text('{"a": [1, 2, 3]}')
    found = {each.outcome for each in run(tmp_path, 6, 0, (Case(name="a", files=("a.json",), read=read),))}
    assert outcomes <= found <= {*outcomes, SAME, mutations.OTHER}
    assert (tmp_path / "a.json").read_text() == '{"a": [1, 2, 3]}', "as before"


def test_the_page_keeps_its_other_sections(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n## Mutated files\n\nold\n\n## Kills\n\nkept\n")
    write_section(page, section([], seed=7))
    assert "--n 0 --seed 7" in page.read_text() and "\nold\n" not in page.read_text()
    assert page.read_text().endswith("\n\n## Kills\n\nkept\n") and page.read_text().startswith(
        "# A\n\n## Mutated files"
    )
