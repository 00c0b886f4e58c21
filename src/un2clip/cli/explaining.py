"""What a number means, where it stands and who reads it: `un2clip explain`, from what docs/params.md is made of."""

import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import un2clip
from un2clip.cli.keys import HINTS, Explain, Key, has_entries, is_section, read_keys
from un2clip.config import RENAMED, build, describe, flatten, read_files, read_params, read_yaml
from un2clip.errors import UserError
from un2clip.evaluation.measuring import file_names, get_file
from un2clip.evidence.gate import Rule
from un2clip.evidence.power import smallest_gain, smallest_shown
from un2clip.evidence.scores import ROLES, load_scores, mismatch
from un2clip.evidence.statistics import of_right_or_wrong, paired_difference
from un2clip.evidence.units import get_unit
from un2clip.files.texts import read_text
from un2clip.methods.table import METHODS
from un2clip.sources.catalogue import published_items
from un2clip.stages import STAGES, sections, stage_params
from un2clip.stages.compare import Compare

RULES, PHASES = "promote.rules", "finetune.phases"


def explain(name: str, params: Path, overlays: Iterable[Path] = ()) -> str:
    """Meaning, type, value, place, readers and overlays of a key of the numbers; of a section, its keys.

    Of promote.rules also what each rule could show at all.

    Args:
        name: in full; an old name is answered with the new one.
        params, overlays: as of `read_params`.

    Raises:
        UserError: there is no such key; names those that are like it.
    """
    numbers, known = read_params(params, overlays), _known(params)
    renamed, name = RENAMED.get(name, ""), RENAMED.get(name, name)
    # a mapping such as that of rates has no keys of its own there: it is explained whole
    whole = next((each for each in (name, name.rpartition(".")[0]) if each in known), "")
    if not whole or (whole != name and get_origin(known[whole][1].hint) is not dict):
        raise UserError(f"no number is called {name!r}{_like(name, known)}; docs/params.md has all")
    file, key = known[whole]
    text = [f"{name} is its name now"] if renamed else []
    text.append(f"{name} = {_value(numbers, name)}" if not is_section(key.hint) else name)
    text.append(f"  {key.comment or 'a section'}")
    text.append(f"  place     {file}")
    if not is_section(key.hint):
        text.append(f"  type      {describe(key.hint)}")
    text += [f"  read by   {each}" for each in _readers(whole, params)]
    if is_section(key.hint):
        below = [each for _, each in known.values() if each.name.startswith(f"{name}.") and not is_section(each.hint)]
        text += [f"  holds     {each.name} = {_value(numbers, each.name)}" for each in below]
    else:
        text += [f"  changed   {each}" for each in _overlays(name, params)]
    if name == RULES:
        text += ["", *_shown(numbers)]
    return "\n".join(text)


def _known(params: Path) -> dict[str, tuple[str, Key]]:
    files = read_files(params)
    keys = [(file, key) for file in files for key in read_keys(read_text(params.with_name(file)))]
    known: dict[str, tuple[str, Key]] = {}
    for file, key in keys:  # of a section that stands in two files, the place that has a comment
        if key.name not in known or not known[key.name][1].comment:
            known[key.name] = file, key
    return known


def _like(name: str, known: Iterable[str]) -> str:
    last = name.rpartition(".")[2]
    close = [each for each in known if each.rpartition(".")[2] == last] or difflib.get_close_matches(name, list(known))
    return f"; like it: {', '.join(close[:5])}" if close else ""


def _value(numbers: Mapping[str, Any], name: str) -> Any:
    found: Any = numbers
    for part in name.split("."):
        if part not in found:
            return "as in the entry that it is like"
        found = found[part]
    return found


def _readers(name: str, params: Path) -> Iterator[str]:
    """The stages and commands that have it, the class whose field it is, and the methods of a phase."""
    first, *rest = name.split(".")
    if first in STAGES:
        others = [stage for stage in STAGES if first in sections(stage)]
        yield f"the stage{'s' * bool(others)} {', '.join([first, *others])}"
    elif is_dataclass(HINTS[first]):
        yield f"`un2clip {first}`"
    elif params.with_name("dvc.yaml").is_file():
        graph = read_yaml(params.with_name("dvc.yaml"))["stages"]
        stages = [stage for stage in graph if f"${{{first}}}" in str(graph[stage])]
        yield f"the stages {', '.join(stages)}"
    hint, owner = HINTS[first], None
    for part in rest:
        if has_entries(hint):
            hint = get_args(hint)[1]
        else:
            owner, hint = (hint, part), get_type_hints(hint).get(part)
        if hint is None or not (is_dataclass(hint) or has_entries(hint)):
            break
    if owner is not None:
        file = Path(inspect.getfile(owner[0])).relative_to(Path(un2clip.__file__).parents[1])
        yield f"{owner[0].__name__}.{owner[1]} in {file}"
    if name.startswith(f"{PHASES}."):
        phase = name.split(".")[2]
        rows = [row for row, method in METHODS.items() if phase in [each.numbers for each in method.phases]]
        yield f"the methods {', '.join(rows)}" if rows else "no method by itself; other phases are like it"


def _overlays(name: str, params: Path) -> Iterator[str]:
    for path in sorted(params.with_name("configs").glob("*.yaml")):
        for key, value in flatten(read_yaml(path)).items():
            if key == name or key.startswith(f"{name}."):
                yield f"{path.name}: {key} = {value}"


def _shown(numbers: Mapping[str, Any]) -> Iterator[str]:
    """What each rule could show: by the scores in scores/ where they are, else by the catalogue's number of items."""
    compare = build(Compare, numbers["compare"], "compare")
    assumed = build(Explain, numbers["explain"], "explain").discordances
    yield (
        f"The smallest true gain that passes a rule in about {100 * compare.power:g} of 100 cases, at "
        f"{100 * compare.confidence:g} % confidence:"
    )
    for rule in stage_params("promote", numbers["promote"]).rules:
        data = Path(numbers["benchmark_data"]) / rule.benchmark
        said = _measured(rule, compare, numbers["seed"]) or _assumed(rule, compare, assumed, data)
        yield f"  {rule.benchmark}, {rule.kind}: {said}"


def _measured(rule: Rule, compare: Compare, seed: int) -> str:
    files = [Path("scores") / rule.benchmark / f"{role}.json" for role in ROLES]
    if not all(file.is_file() for file in files):
        return ""
    before, after = map(load_scores, files)
    if mismatch(before, after) or get_unit(after.unit).set_level:
        return ""
    how: dict[str, Any] = {"confidence": compare.confidence, "resamples": compare.resamples, "seed": seed}
    seen, unit = paired_difference(before.items, after.items, unit=after.unit, **how), get_unit(after.unit)
    gain = smallest_shown(
        seen,
        unit.name,
        right_or_wrong=of_right_or_wrong(before.items, after.items, after.unit) is not None,
        bound=rule.gain_above,
        confidence=compare.confidence,
        power=compare.power,
    )
    changed = f"{seen.n} {unit.counts}, of which {seen.changed} changed in {files[0].parent}"
    if math.isnan(gain):
        return f"{changed}: not known"
    return f"{changed}: {gain:.3g} {unit.change}" if math.isfinite(gain) else f"{changed}: no outcome could pass"


def _assumed(rule: Rule, compare: Compare, discordances: Iterable[float], data: Path) -> str:
    """By the items of the data where they are and can be counted, or of the published set."""
    n, whose = _items(rule.benchmark, data)
    if not n:
        return "its scores, its data, or an entry of the catalogue with its number of items, would say"
    points = []
    for each in discordances:
        gain = smallest_gain(n, each, bound=rule.gain_above / 100.0, confidence=compare.confidence, power=compare.power)
        if math.isinf(gain):
            return f"{n} {whose}: no outcome could pass"
        points.append(f"{100 * gain:.2g} points where {100 * each:g} % change")
    return f"{n} {whose}: {', '.join(points)}"


def _items(benchmark: str, data: Path) -> tuple[int, str]:
    file = benchmark.partition("-")[0]
    if data.is_dir() and file in file_names() and hasattr(counting := get_file(file), "count"):
        return counting.count(data), f"items in {data}"
    return published_items(benchmark), "published items"
