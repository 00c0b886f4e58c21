import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from un2clip.__main__ import main
from un2clip.config import build, flags, merge, read_params, read_yaml, split, stack, unite
from un2clip.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr must not be negative, got {self.lr}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    steps: int
    kind: Literal["a", "b"]
    on_disk: bool
    sizes: tuple[int, ...]
    inner: Inner


GOOD = {"steps": 3, "kind": "a", "on_disk": True, "sizes": [1, 2], "inner": {"lr": 0.1}}


def change(**changes: object) -> dict[str, object]:
    return {key: value for key, value in (GOOD | changes).items() if value != "ABSENT"}


def test_good_values_arrive_as_declared() -> None:
    """Integral floats (KFP) become ints, and numeric text without a dot (dvc -S) becomes a float."""
    section = build(Section, change(steps=3.0, inner={"lr": "1e-06"}), "finetune")
    assert section == Section(steps=3, kind="a", on_disk=True, sizes=(1, 2), inner=Inner(lr=1e-6))
    assert isinstance(section.steps, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (change(stepz=1), "unknown parameter finetune.stepz; known here: steps, kind, on_disk, sizes, inner"),
        (change(steps="ABSENT"), "missing parameter finetune.steps: an integer"),
        (change(steps=1.5), "finetune.steps must be an integer, got 1.5"),
        (change(steps=True), "finetune.steps must be an integer, got True"),
        (change(steps=float("nan")), "finetune.steps must be an integer, got nan"),
        (change(steps=float("inf")), "finetune.steps must be an integer, got inf"),
        (change(kind="c"), "finetune.kind must be one of a, b, got 'c'"),
        (change(on_disk=1), "finetune.on_disk must be true or false, got 1"),
        (change(sizes=[1, "x"]), "finetune.sizes[1] must be an integer, got 'x'"),
        (change(inner={"lr": "fast"}), "finetune.inner.lr must be a number, got 'fast'"),
        (change(inner={"lr": -1}), "finetune.inner.lr must not be negative, got -1.0"),
        (change(inner=3), "finetune.inner must be a mapping, got 3"),
    ],
)
def test_bad_values_are_named_in_full(values: dict[str, object], message: str) -> None:
    """A mistake is one line with the parameter's full name and what is allowed."""
    with pytest.raises(UserError) as caught:
        build(Section, values, "finetune")
    assert str(caught.value) == message


def test_overlay_changes_and_never_adds() -> None:
    """merge replaces deep values, leaves the base as it was, and refuses unknown names."""
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merge(base, {"a": {"b": 9}, "d": [2, 3]}) == {"a": {"b": 9, "c": 2}, "d": [2, 3]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}
    with pytest.raises(UserError, match=r"unknown parameter a\.x; known here: b, c"):
        merge(base, {"a": {"x": 1}})


def test_flags_say_the_same_as_the_overlay() -> None:
    """Every word pair is `-S full.name=value`, and YAML reads the value back."""
    training = {"lr": 1e-6, "timesteps": [0, 9]}
    overlay = {"method": "un2clip", "finetune": {"training": training}}
    words = flags(overlay, {"params.yaml": overlay})
    assert words[::2] == ["-S"] * 3 and not any(" " in word for word in words)
    names, values = zip(*(word.split("=") for word in words[1::2]), strict=True)
    assert names == ("method", "finetune.training.lr", "finetune.training.timesteps")
    assert [yaml.safe_load(value) for value in values][::2] == ["un2clip", [0, 9]]
    assert float(values[1]) == 1e-6


def test_hashes_are_one_value() -> None:
    """An overlay replaces a mapping of hashes, whose keys are file names; overlays are stacked, the later wins."""
    assert merge({"a": {"sha256": {"old": "1"}}}, {"a": {"sha256": {"x.json": "2"}}}) == {
        "a": {"sha256": {"x.json": "2"}}
    }
    first, second = {"a": {"b": 1, "sha256": {"x": "1"}}}, {"a": {"c": 2, "sha256": {"y": "2"}}}
    assert stack([first, second]) == {"a": {"b": 1, "c": 2, "sha256": {"y": "2"}}}
    assert first == {"a": {"b": 1, "sha256": {"x": "1"}}}


#: Values that a shell, xargs or Hydra's grammar takes for something else where they are not quoted.
ODD = (
    "a photo of a .", "a, b", "x=y", "[1,2]", "{a:b}", "1", "1e5", "0x10", "true", "null", "~", "a: b",
    "it's", "say \"hi\"", "back\\slash", "ends\\", "ends\\\\", "a\\\"b", "${oc.env:HOME}", "a\\${x}", "${",
    "$HOME", "$(id)", "`id`", "*", "~/x", "a\tb", " lead", "trail ", "é 日本", "#c", "%20", "?", "glob(*)",
    "choice(1,2)", "@x", "-S", "", "  ", "'", "\"", "\\", "\\'", "\\\"", "a;b", "!x", "a|b>c&d", "()",
    "\u2028", "\x07", "2026-01-01", "y", "12:30 h", "=", ",",
)  # fmt: skip


def test_every_value_of_an_overlay_reaches_dvc(tmp_path, capfd, monkeypatch) -> None:
    """Through the README's own line, un2clip flags, xargs and DVC's parser: as a parameter, in a list, a mapping."""
    monkeypatch.chdir(tmp_path)
    params = {f"p{i}": "old" for i in range(len(ODD))} | {"several": [], "sha256": {}}
    overlay = {f"p{i}": value for i, value in enumerate(ODD)} | {"several": list(ODD)}
    overlay |= {"sha256": {"my weights.bin": ODD[0], "unet/x.safetensors": "1"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    assert main(["flags", "overlay.yaml"]) == 0
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    done = subprocess.run(
        ["xargs", "-r", *show], input=capfd.readouterr().out, capture_output=True, text=True, check=True
    )
    words = json.loads(done.stdout)
    assert words == flags(overlay, {"params.yaml": params})
    apply_overrides(tmp_path / "params.yaml", words[1::2])
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == merge(params, overlay)


@pytest.mark.parametrize(
    "overlay", [{"p": "two\nlines"}, {"p": "yes"}, {"p": "1:30"}, {"sha256": {"ä.bin": "1"}}, {"sha256": {"1": "1"}}]
)
def test_what_a_command_line_cannot_say_is_refused(overlay) -> None:
    """Nothing is lost on the way: a line break, and a key that DVC's grammar has no quotes for."""
    with pytest.raises(UserError, match="command line cannot say .*; write it into params.yaml"):
        flags(overlay, {"params.yaml": {"p": "", "sha256": {}}})


def test_dvc_reads_what_flags_writes(tmp_path) -> None:
    """DVC's own parser puts an overlay with hashes, dots, slashes and an empty text where merge puts it."""
    params = {"a": {"weights": "toy", "revision": "1", "sha256": {}, "steps": 1}, "b": {"sha256": {}}, "c": []}
    world = {"a": {"toy": {"width": 8, "sizes": [1]}}, "shapes": {"scenes": 9, "sha256": {}}}
    overlay = {
        "a": {
            "weights": "models:/x@y",
            "revision": "",
            "sha256": {"unet/m.safetensors": "0" * 64, "m_1.json": "1e5"},
            "toy": {"sizes": [2, 3]},
        },
        "b": {"sha256": {}},
        "c": [{"benchmark": "zeroshot-x", "gain_above": -2.0}, {"benchmark": "y", "gain_above": 0.5}],
        "shapes": {"scenes": 3, "sha256": {"x": "1"}},
    }
    files = {"params.yaml": params, "world.yaml": world}
    words = flags(overlay, files)[1::2]
    assert {"world.yaml:a.toy.sizes=[2,3]", "world.yaml:shapes.scenes=3", "a.weights=models:/x@y"} <= set(words)
    for name, overrides in to_path_overrides(words).items():
        (tmp_path / name).write_text(yaml.safe_dump(files[name]))
        apply_overrides(tmp_path / name, overrides)
        files[name] = yaml.safe_load((tmp_path / name).read_text())
    assert unite(files) == merge(unite({"params.yaml": params, "world.yaml": world}), overlay)


def write(folder, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "params.yaml"


def test_the_files_are_read_as_one(tmp_path) -> None:
    """What lies beside params.yaml is laid under it, parts of one section too; an overlay changes keys of each."""
    params = write(tmp_path, params="seed: 1\na: {b: 1}\n", world="a: {c: 2}\nw: 3\n", download="d: {e: 4}\n")
    assert read_params(params) == {"seed": 1, "a": {"b": 1, "c": 2}, "w": 3, "d": {"e": 4}}
    write(tmp_path, first="a: {b: 8, c: 9}\n", second="a: {c: 7}\nd: {e: 5}\n")
    overlays = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    assert read_params(params, overlays) == {"seed": 1, "a": {"b": 8, "c": 7}, "w": 3, "d": {"e": 5}}
    write(tmp_path, second="a: {x: 1}\n")
    with pytest.raises(UserError, match=r"unknown parameter a\.x; known here: b, c"):
        read_params(params, overlays)


def test_a_file_that_holds_everything_is_enough(tmp_path) -> None:
    """A params file of any name in a folder of its own; other YAML files beside it are none of ours."""
    write(tmp_path, whole="seed: 1\na: {b: 1, c: 2}\n", dvc="stages: {}\n")
    assert read_params(tmp_path / "whole.yaml") == {"seed": 1, "a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("world", ["a: {b: {c: 2}}", "a: {b: {c: {}}}", "a: 1", "a: {sha256: {}}"])
def test_a_key_stands_in_one_file(tmp_path, world: str) -> None:
    """A number, hashes, or a number here and a section there: refused with the key and both files."""
    params = write(tmp_path, params="a: {b: {c: 2}, sha256: {}}\n", world=world)
    with pytest.raises(UserError, match=r"^a\S* stands in params\.yaml and in world\.yaml; it must stand in one"):
        read_params(params)


def test_split_gives_each_file_its_part() -> None:
    """Each part changes what its own file holds, and the parts together are the overlay."""
    files = {"params.yaml": {"a": {"b": 1}, "s": 0}, "world.yaml": {"a": {"c": {"d": 2}}}, "download.yaml": {"e": 1}}
    overlay = {"a": {"c": {"d": 3}, "b": 4}, "s": 5}
    parts = split(overlay, files)
    assert parts == {"params.yaml": {"a": {"b": 4}, "s": 5}, "world.yaml": {"a": {"c": {"d": 3}}}, "download.yaml": {}}
    assert unite({name: merge(files[name], part) for name, part in parts.items()}) == merge(unite(files), overlay)


@pytest.mark.parametrize("content", ["a: [", "- 1", ""])
def test_broken_file_is_named(tmp_path, content: str) -> None:
    """A file that is no mapping is a UserError with its path."""
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(UserError, match=r"p\.yaml"):
        read_yaml(tmp_path / "p.yaml")
