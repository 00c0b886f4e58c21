"""Scores files: what they say is what their items give, and nothing else is believed."""

import json
import math

import pytest

from un2clip.errors import UserError
from un2clip.evidence.scores import Item, Scores, collect_scores, load_scores, mismatch

HAND = [("1", "colour", 1.0), ("2", "colour", 0.0), ("3", "count", 1.0), ("4", "colour", 1.0)]


def make(rows=HAND, **changes) -> Scores:
    fields = {"benchmark": "mmvp_vlm", "role": "tuned", "method": "un2clip", "unit": "%", "protocol": "",
              "data_sha256": "d" * 64, "encoder_sha256": "e" * 64,
              "items": tuple(Item(id=i, type=t, value=v) for i, t, v in rows)}  # fmt: skip
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


# Three images; the union of a class in an image is its labels or its prediction, so the two sets differ.
MIOU = {
    "reference": [("1", "sky", 6, 8), ("1", "cat", 0, 3), ("2", "cat", 4, 4), ("3", "sky", 1, 2)],
    "tuned": [("1", "sky", 8, 8), ("2", "cat", 3, 4), ("2", "sky", 0, 1), ("3", "sky", 1, 2), ("3", "dog", 0, 5)],
}


def miou(role, rows=None, **changes) -> Scores:
    items = tuple(
        Item(id=f"{image}@{name}", type=name, value=float(inside), of=float(union))
        for image, name, inside, union in rows or MIOU[role]
    )
    return make(unit="mIoU", benchmark="segmentation", role=role, items=items, **changes)


def test_miou_by_hand():
    """Pixels are summed over the set class by class: sky 7 of 10, cat 4 of 7; then the mean over the classes."""
    assert miou("reference").per_type() == {"sky": (pytest.approx(70), 2), "cat": (pytest.approx(400 / 7), 2)}
    assert miou("reference").score == pytest.approx((70 + 400 / 7) / 2)
    assert miou("tuned").score == pytest.approx((900 / 11 + 75 + 0) / 3)  # the dog that is nowhere costs


def test_miou_is_that_of_torchmetrics():
    """On random label maps, with void pixels and a class that is nowhere, the score is MulticlassJaccardIndex's."""
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    rng = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, 4, (2, 5, 8, 8), generator=rng)
    labels[:, :2] = 255
    oracle = MulticlassJaccardIndex(num_classes=5, average="macro", ignore_index=255)
    oracle.update(predicted, labels)
    rows = []
    for i, (label, guess) in enumerate(zip(labels, predicted, strict=True)):
        for c in range(5):
            inside, union = (label == c) & (guess == c), ((label == c) | (guess == c)) & (label != 255)
            rows += [(str(i), str(c), int(inside.sum()), int(union.sum()))] if union.any() else []
    assert miou("tuned", rows).score == pytest.approx(100 * float(oracle.compute()))


def test_only_miou_stores_what_a_value_is_out_of(tmp_path):
    """Files of the other units stay small; mIoU comes back from its file to the byte, and an edited union is seen."""
    make().save(tmp_path / "percent.json")
    assert '"of"' not in (tmp_path / "percent.json").read_text()
    path, again = tmp_path / "tuned.json", tmp_path / "again.json"
    miou("tuned").save(path)
    load_scores(path).save(again)
    assert again.read_bytes() == path.read_bytes()
    path.write_text(path.read_text().replace('"of": 8.0', '"of": 9.0'))
    with pytest.raises(UserError, match="edited by hand"):
        load_scores(path)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda: miou("tuned", [("1", "sky", 3, 2)]), "within a union"),
        (lambda: miou("tuned", [("1", "sky", -1, 2)]), "within a union"),
        (lambda: miou("tuned", [("1", "sky", 0, 0)]), "within a union"),
        (lambda: miou("tuned", [("1", "sky", math.nan, 2)]), "within a union"),
        (lambda: miou("tuned", [("1", "sky", 1.5, 2)]), "whole numbers of pixels"),
        (lambda: make([("1", "a", -0.5)], unit="mse"), "at least 0 and finite"),
        (lambda: make([("1", "a", -math.inf)], unit="mse"), "at least 0 and finite"),
        (lambda: make([("1", "a", math.inf)], unit="mse"), "at least 0 and finite"),
        (lambda: make([("1", "a", -math.inf)]), "between 0 and 1"),
        (lambda: miou("tuned", [("1", "a@b", 1, 2)]), "image@class"),
        (lambda: make(items=(Item(id="1", type="a", value=1.0, of=2.0),)), "out of 1"),
        (lambda: make(protocol="one\ntwo"), "one line"),
    ],
    ids=[
        "more than the union",
        "negative",
        "empty union",
        "nan",
        "half a pixel",
        "negative error",
        "-inf",
        "inf",
        "-inf in %",
        "@ in a class",
        "of in %",
        "lines",
    ],
)
def test_what_a_unit_does_not_have_is_refused(broken, says):
    """A count that cannot be is stopped where it is made, not in a table."""
    with pytest.raises(ValueError, match=says):
        broken()


def test_miou_needs_the_same_images_not_the_same_items():
    """Which classes an image has a union for depends on the prediction; which images there are does not."""
    before = miou("reference", [("1", "sky", 6, 8), ("1", "cat", 0, 6), ("2", "sky", 1, 3)])
    rows = [("1", "sky", 8, 12), ("2", "sky", 0, 2), ("2", "dog", 0, 2)]
    assert mismatch(before, miou("tuned", rows)) is None
    assert mismatch(before, miou("tuned", rows[:1])) == "the images differ"


@pytest.mark.parametrize("image", [0, 1])
def test_a_class_of_miou_that_was_dropped_is_seen(image):
    """Without its worst class an encoder gains; labels and predictions cover every pixel, so the totals differ."""
    before = [("1", "sky", 6, 8), ("1", "cat", 0, 6), ("2", "sky", 4, 4), ("2", "cat", 0, 0)][:3]
    after = [("1", "sky", 8, 8), ("1", "cat", 0, 4), ("2", "sky", 2, 4), ("2", "cat", 0, 2)]
    assert mismatch(miou("reference", before), miou("tuned", after)) is None
    del after[1 + 2 * image]
    reason = mismatch(miou("reference", before), miou("tuned", after))
    assert reason == f"items are missing or were added: the totals of 1 images differ (first: {image + 1})"


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
        (make(protocol="336 px"), r"measured in different ways \(''.*'336 px'\)"),
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
