"""The rooms: their order, their size, and that their picture is what the imports say."""

import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.wiring.rooms import PACKAGE, PICTURE, ROOMS, ROOT, draw, file_edges, imports, modules, needed, room_of

CODE = sorted(
    path for folder in ("src", "pipelines", "components", "timings") for path in (ROOT / folder).rglob("*.py")
)


def test_no_room_imports_a_higher_one() -> None:
    """Every import goes to the same room or to one that stands below it, in a function too."""
    pairs = [(above, below) for above, below in file_edges() if room_of(above) and room_of(below)]
    assert [(a, b) for a, b in pairs if ROOMS.index(room_of(b)) > ROOMS.index(room_of(a))] == []
    assert ("un2clip.stages.finetune", "un2clip.training.starting") in pairs, "an import that everybody knows of"


def test_the_loop_knows_no_method_and_no_decoder() -> None:
    """What trains comes as an objective: the loop and what it calls import neither room above it."""
    pairs = file_edges()
    reached, ahead = set(), {"un2clip.training.loop", "un2clip.training.replicas"}
    while ahead:
        reached |= ahead
        ahead = {below for above, below in pairs if above in ahead} - reached
    assert "un2clip.datasets.loader" in reached, "what it does import is seen"
    known = sorted(name for name in reached if room_of(name) in ("methods", "decoders"))
    assert known == ["un2clip.decoders.decoder"], "NoiseConfig alone"


def test_no_circle_of_files() -> None:
    """Within a room too, one can read what a file stands on before it."""
    graph: dict[str, set[str]] = {}
    for above, below in file_edges():
        if not above.startswith(f"{below}."):  # a package is loaded before what is in it, which may use its names
            graph.setdefault(above, set()).add(below)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {' -> '.join(error.args[1])}")


def test_every_name_on_the_top_level_is_a_room() -> None:
    """At most 24 names, and no file beside the rooms."""
    names = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__") or path.name == "__main__.py"}
    assert names == set(ROOMS) and len(names) <= 24


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    """At the top, in a function, of a name, of a module, under another name."""
    file = tmp_path / "a.py"
    file.write_text(
        "import un2clip.hashes\nfrom un2clip import devices as d\nfrom un2clip.config import merge\n"
        "def f():\n    from un2clip.datasets import loader, shards\n"
    )
    assert set(imports(file, modules())) == {
        f"un2clip.{name}" for name in ("hashes", "devices", "config", "datasets.loader", "datasets.shards")
    }


def test_the_picture_shows_what_no_longer_way_implies() -> None:
    """stages on config on errors: the arrow from stages to errors is left out, and the other two stay."""
    edges = {("stages", "config"), ("config", "errors"), ("stages", "errors"), ("cli", "hashes")}
    assert needed(edges) == edges - {("stages", "errors")}


def test_the_picture_is_fresh() -> None:
    """docs/rooms.svg is what `make rooms` draws now."""
    assert PICTURE.read_text() == draw(), "run `make rooms`"


def test_files_are_short() -> None:
    """No file above 300 lines, and half of them at most 150."""
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert statistics.median(length for length in lengths.values() if length > 20) <= 150
