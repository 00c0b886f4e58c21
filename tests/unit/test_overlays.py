"""What an overlay may say: keys of another name, and entries of a mapping that are like one another."""

import dataclasses

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from un2clip.config import RENAMED, build, convert, flags, merge, read_params
from un2clip.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    lr: float
    warmup: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    steps: int
    frozen: bool
    rate: Rate


FIRST = {"steps": 10, "frozen": True, "rate": {"lr": 0.1, "warmup": 3}}
#: The third is like the second, which is like the first.
PHASES = {
    "third": {"like": "second", "frozen": False},
    "first": FIRST,
    "second": {"like": "first", "steps": 20, "rate": {"lr": 0.2}},
}


def phases(values: object) -> dict[str, Phase]:
    return convert(dict[str, Phase], values, "train.phases")


def test_an_entry_that_is_like_another_holds_what_differs() -> None:
    """Along a chain too, and in a mapping within the entry; the order of the entries is kept."""
    read = phases(PHASES)
    assert list(read) == list(PHASES)
    assert read["first"] == build(Phase, FIRST, "first")
    assert read["second"] == Phase(steps=20, frozen=True, rate=Rate(lr=0.2, warmup=3))
    assert read["third"] == Phase(steps=20, frozen=False, rate=Rate(lr=0.2, warmup=3))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"like": "zeroth"}, "train.phases.third.like must be one of first, second, got 'zeroth'"),
        ({"like": ["first"]}, "train.phases.third.like must be one of first, second, got ['first']"),
        ({"like": "third"}, "train.phases.third.like closes a circle: third -> third"),
        ({"like": "first", "stepz": 1}, "unknown parameter train.phases.third.stepz; known here: frozen, rate, steps"),
        ({"like": "first", "rate": {"x": 1}}, "unknown parameter train.phases.third.rate.x; known here: lr, warmup"),
        ({"like": "first", "steps": "x"}, "train.phases.third.steps must be an integer, got 'x'"),
        ({"steps": 1, "frozen": True}, "missing parameter train.phases.third.rate: a mapping of lr, warmup"),
    ],
)
def test_what_does_not_fit_is_one_sentence(entry: dict[str, object], message: str) -> None:
    """An unknown name, a circle, a foreign key, and without `like` a missing one."""
    with pytest.raises(UserError) as caught:
        phases(PHASES | {"third": entry})
    assert str(caught.value) == message


def test_a_circle_is_seen_from_outside_of_it_too() -> None:
    """The entry that closes it is named, and the way there; what an entry is like must be one."""
    circle = {"a": {"like": "b"}, "b": {"like": "a"}}
    with pytest.raises(UserError, match=r"^train\.phases\.a\.like closes a circle: c -> b -> a -> b$"):
        phases({"c": {"like": "b"}} | circle)
    with pytest.raises(UserError, match=r"^train\.phases\.a must be a mapping, got 3$"):
        phases({"b": {"like": "a"}, "a": 3})


def test_an_overlay_may_add_to_an_entry_what_the_other_one_has() -> None:
    """Deep ones too, and no others; an entry that is like none keeps the old rule."""
    overlay = {"third": {"steps": 5, "rate": {"warmup": 0}}, "second": {"rate": {"lr": 0.3}}}
    read = phases(merge(PHASES, overlay))
    assert read["third"] == Phase(steps=5, frozen=False, rate=Rate(lr=0.3, warmup=0))
    assert PHASES["third"] == {"like": "second", "frozen": False}
    for name in ("third", "first"):
        with pytest.raises(UserError, match=rf"unknown parameter train\.{name}\.x; known here: frozen, rate, steps"):
            merge(PHASES, {name: {"x": 1}}, "train.")
    with pytest.raises(UserError, match=r"unknown parameter train\.fourth; known here: first, second, third"):
        merge(PHASES, {"fourth": {"like": "first"}}, "train.")


def test_an_overlay_may_say_which_entry_it_is_like() -> None:
    """Where it is like one already; a circle is refused."""
    changed = phases(merge(PHASES, {"third": {"like": "first"}}))
    assert changed["third"] == dataclasses.replace(changed["first"], frozen=False)
    with pytest.raises(UserError, match="closes a circle: third -> third"):
        merge(PHASES, {"third": {"like": "third"}})


def test_dvc_adds_what_the_entry_does_not_hold(tmp_path) -> None:
    """DVC's own parser takes the flags of such an overlay, and puts them where merge puts them."""
    base, overlay = {"phases": PHASES}, {"phases": {"third": {"steps": 5, "frozen": True, "rate": {"lr": 0.5}}}}
    words = flags(overlay, {"params.yaml": base})[1::2]
    assert words == ["+phases.third.steps=5", "phases.third.frozen=true", "+phases.third.rate.lr=0.5"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base))
    apply_overrides(tmp_path / "params.yaml", words)
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == merge(base, overlay)


@pytest.mark.parametrize(
    "overlay", ["train: {rate: 1}", "train: {old: {lr: 1}}", "train: {old: {deep: {x: 2, lr: 1}}}"]
)
def test_a_key_of_another_name_is_refused_with_it(tmp_path, monkeypatch, overlay: str) -> None:
    """In its place, or in a section that is no longer there."""
    for old in ("train.rate", "train.old.lr", "train.old.deep.lr"):
        monkeypatch.setitem(RENAMED, old, "train.lr")
    (tmp_path / "params.yaml").write_text("train: {lr: 2}\n")
    (tmp_path / "overlay.yaml").write_text(overlay)
    with pytest.raises(UserError, match=r"^train\.\S+ is train\.lr now$"):
        read_params(tmp_path / "params.yaml", [tmp_path / "overlay.yaml"])


def test_a_section_with_a_key_of_another_name_is_refused_too(monkeypatch) -> None:
    """A whole file of an older version, or a section that Kubeflow hands over."""
    monkeypatch.setitem(RENAMED, "train.rate.speed", "train.rate.lr")
    with pytest.raises(UserError, match=r"^train\.rate\.speed is train\.rate\.lr now$"):
        build(Phase, FIRST | {"rate": {"speed": 0.1, "warmup": 3}}, "train")
