"""Every integer of the numbers at -1, 0 and 1, in its stage at toy size: does it work, or is it one line?

python -m tests.robustness.integers            # ten minutes of a core; prints what was neither
"""

import contextlib
import copy
import io
import os
import sys
import tempfile
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from un2clip.cli.keys import HINTS
from un2clip.config import convert, read_params
from un2clip.errors import UserError

ROOT = Path(__file__).parents[2]
VALUES = (-1, 0, 1)
Place = tuple[str | int, ...]


def numbers() -> dict[str, Any]:
    return read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])


def integers(hint: Any, value: Any, place: Place = ()) -> Iterator[Place]:
    """Where integers stand in a value of this type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        yield place
    elif is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint).items():
            if name in value:
                yield from integers(inner, value[name], (*place, name))
    elif origin in (dict, tuple):
        for name in value if origin is dict else range(len(value)):
            yield from integers(args[1 if origin is dict else 0], value[name], (*place, name))


def places() -> list[Place]:
    """Every integer of the numbers, from the dataclasses of all sections."""
    given = numbers()
    return [place for name, hint in HINTS.items() for place in integers(hint, given[name], (name,))]


def changed(place: Place, value: int) -> dict[str, Any]:
    """The toy numbers with one integer changed."""
    whole = copy.deepcopy(numbers())
    within: Any = whole
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = value
    return whole


def method_of(place: Place) -> str:
    """A row of the method table that reads this number."""
    rows = {"flow": "genhancer", "pixels": "unilip", "statistics_images": "align", "longer": "un2clip-longer"}
    rows |= {"align": "align", "diva": "diva", "genhancer-2": "genhancer", "contrast": "dcr"}
    return next((rows[str(name)] for name in place if name in rows), "un2clip-anchored")


def tried(place: Place, value: int, base: Path) -> str:
    """What happens in the stage: "" where it works, a line, or what must not be."""
    from tests.robustness.pipeline import STAGES, names
    from un2clip.stages import run_stage

    whole = changed(place, value)
    try:
        convert(HINTS[str(place[0])], whole[str(place[0])], str(place[0]))
        if place[0] in STAGES:
            said = io.StringIO()
            with (
                tempfile.TemporaryDirectory() as out,
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
            ):
                stage = str(place[0])
                run_stage(stage, whole[stage], **names(stage, base, Path(out), method=method_of(place)))
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"TRACEBACK {error!r}"
    return ""


def main() -> int:
    from tests.robustness.pipeline import make

    os.environ["UN2CLIP_TRACKING"] = "off"
    bad = worked = lines = 0
    with tempfile.TemporaryDirectory() as folder:
        base = make(Path(folder))
        for place in places():
            for value in VALUES:
                said = tried(place, value, base)
                worked, lines = worked + (not said), lines + bool(said)
                if said.startswith("TRACEBACK") or "\n" in said:
                    bad += 1
                    print(".".join(map(str, place)), value, said, flush=True)
    print(f"{len(places())} integers at {len(VALUES)} values: {worked} worked, {lines - bad} one line, {bad} neither")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
