"""Scores files: what they say is what their items give, and nothing else is believed."""

import json
import math

import pytest

from un2clip.config import UserError
from un2clip.scores import Item, Scores, collect_scores, load_scores, mismatch

HAND = [("1", "colour", 1.0), ("2", "colour", 0.0), ("3", "count", 1.0), ("4", "colour", 1.0)]


def make(rows=HAND, **changes) -> Scores:
    fields = {"benchmark": "mmvp_vlm", "role": "tuned", "method": "un2clip", "unit": "%", "data_sha256": "d" * 64,
              "encoder_sha256": "e" * 64, "items": tuple(Item(id=i, type=t, value=v) for i, t, v in rows)}  # fmt: skip
    return Scores(**(fields | changes))


def test_summary_by_hand():
    """Three of four is 75 %; colour has two of three, count one of one."""
    scores = make()
    assert (scores.n, scores.score) == (4, 75.0)
    assert scores.per_type() == {"colour": (pytest.approx(200 / 3), 3), "count": (100.0, 1)}
    assert make(unit="mse").score == 0.75


@pytest.mark.parametrize("value", [1.0, math.nan], ids=["finite", "nan"])
def test_round_trip(tmp_path, value):
    """What was saved is what is loaded, to the byte, also where an outcome is NaN."""
    scores = make([("1", "a", 0.1), ("2", "b", value)], unit="mse")
    scores.save(tmp_path / "tuned.json")
    load_scores(tmp_path / "tuned.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tuned.json").read_bytes()


def _set(path, value):
    def edit(content):
        *above, last = path
        for key in above:
            content = content[key]
        content[last] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _set(["score"], 90.0),
        _set(["score"], math.nan),
        _set(["n"], 5),
        _set(["items", 1, "value"], 1.0),
        _set(["items", 1, "type"], "count"),
        _set(["per_type", "colour", "score"], 100.0),
        _set(["per_type", "colour", "n"], 4),
        _set(["per_type", "texts"], {"score": 0.0, "n": 0}),
        lambda content: content["items"].pop(),
    ],
    ids=["score", "nan", "n", "outcome", "type", "type score", "type n", "type added", "item gone"],
)
def test_a_hand_edited_file_is_refused(tmp_path, edit):
    """Whatever is changed alone, summary or items, no longer fits the rest."""
    path = tmp_path / "tuned.json"
    make().save(path)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="edited by hand"):
        load_scores(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("data_sha256"),
        _set(["role"], "best"),
        _set(["unit"], "points"),
        _set(["items", 1, "id"], "1"),
        _set(["items", 1, "value"], 7.0),
        _set(["items", 1, "value"], "many"),
        _set(["items"], None),
        _set(["per_type"], []),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, edit):
    """A file that is no scores file is one line that names it."""
    path = tmp_path / "tuned.json"
    make().save(path)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tuned\.json is not a scores file"):
        load_scores(path)


def test_collects_from_a_parent_folder_and_from_a_list_alike(tmp_path):
    """DVC hands over one parent, Kubeflow a list of folders; other files there are left alone."""
    for benchmark in ("mmvp_vlm", "zeroshot"):
        for role in ("reference", "tuned"):
            make(benchmark=benchmark, role=role).save(tmp_path / benchmark / f"{role}.json")
    (tmp_path / "zeroshot" / "table.json").write_text("[]")
    found = collect_scores([tmp_path])
    assert found == collect_scores([tmp_path / "zeroshot", tmp_path / "mmvp_vlm"])
    assert [(benchmark, *sorted(roles)) for benchmark, roles in found.items()] == [
        ("mmvp_vlm", "reference", "tuned"), ("zeroshot", "reference", "tuned")
    ]  # fmt: skip


def test_refuses_two_of_a_role_and_none_at_all(tmp_path):
    """Nobody guesses which of two scores counts."""
    with pytest.raises(UserError, match="no scores files below"):
        collect_scores([tmp_path])
    make().save(tmp_path / "a" / "tuned.json")
    make().save(tmp_path / "b" / "tuned.json")
    with pytest.raises(UserError, match="two scores files of tuned on mmvp_vlm"):
        collect_scores([tmp_path])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (make(), None),
        (make(encoder_sha256="f" * 64, method="x"), None),
        (make(data_sha256="0" * 64), "data_sha256 differs"),
        (make(unit="mse"), "unit differs"),
        (make(benchmark="zeroshot"), "benchmark differs"),
        (make(HAND[:3]), r"n differs \(4 and 3\)"),
        (make([HAND[1], HAND[0], *HAND[2:]]), "items differ"),
        (make([*HAND[:3], ("4", "count", 1.0)]), "items differ"),
        (make([*HAND[:3], ("4", "colour", math.nan)]), "1 of 4 outcomes are not finite"),
    ],
)
def test_mismatch_table(other, says):
    """Only the same items of the same data in the same unit may be compared."""
    import re

    reason = mismatch(make(), other)
    assert reason is None if says is None else re.search(says, reason)
