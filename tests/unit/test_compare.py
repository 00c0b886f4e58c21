"""The report: its numbers by hand, its page self-contained and harmless, its refusals."""

import base64
import json
import re
import shutil

import pytest

from un2clip.errors import UserError
from un2clip.evidence.languages import save_asked
from un2clip.evidence.power import smallest_gain
from un2clip.evidence.report import read_report
from un2clip.evidence.scores import Item, Scores
from un2clip.stages.compare import Compare, compare

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>'
SHA = {"reference": "a" * 64, "tuned": "b" * 64}


def save(folder, benchmark, role, values, *, unit="%", types=("shape", HOSTILE), data="d", sha=None):
    """Write scores whose items take the types in turn."""
    items = tuple(Item(id=str(i), type=types[i % len(types)], value=value) for i, value in enumerate(values))
    Scores(benchmark=benchmark, role=role, method="un2clip" if role == "tuned" else "reference", unit=unit,
           protocol="fp32; ties are image 2",
           data_sha256=data * 64, encoder_sha256=sha or SHA[role], items=items,
    ).save(folder / benchmark / f"{role}.json")  # fmt: skip


@pytest.fixture
def world(tmp_path):
    """An encoder with its lineage, scores on two benchmarks, pictures."""
    encoder, scores, pictures = (tmp_path / name for name in ("encoder", "scores", "reconstructions"))
    encoder.mkdir()
    lineage = {"method": "un2clip", "seed": 3, "params": {"phase": {"lr": 1e-5}},
               "parents": {"shards": "c" * 64, "clip": SHA["reference"]},
               "encoder_sha256": SHA["tuned"], "text_sha256": "t" * 64,
               "steps_done": 4, "corrupt": 0, "complete": True}  # fmt: skip
    (encoder / "lineage.json").write_text(json.dumps(lineage))
    history = [{"step": step, "loss": 1 / (step + 1), "cosine": 1.0, "anchor": 0.1} for step in range(5)]
    (encoder / "history.json").write_text(json.dumps(history))
    # type "shape" (even items): 10 of 20 -> 20 of 20; the other type stays at 10 of 20
    before = [1.0] * 20 + [0.0] * 20
    save(scores, "mmvp_vlm", "reference", before)
    save(scores, "mmvp_vlm", "tuned", [1.0 if i % 2 == 0 else value for i, value in enumerate(before)])
    losses = [0.30 + 0.01 * (i % 3) for i in range(12)]
    save(scores, "diffusion_loss", "reference", losses, unit="mse", types=("heldout",))
    save(scores, "diffusion_loss", "tuned", [loss - 0.02 for loss in losses], unit="mse", types=("heldout",))
    (scores / "diffusion_loss" / "diffusion_loss.png").write_bytes(PNG)
    pictures.mkdir()
    (pictures / "grid.png").write_bytes(PNG)
    return tmp_path


def run(world, report="report", scores=None, seed=10):
    """Run the stage and return (JSON, page)."""
    compare(
        Compare(confidence=0.95, power=0.8, resamples=2000), seed=seed, scores=scores or [world / "scores"],
        encoder=world / "encoder", reconstructions=world / "reconstructions", report=world / report,
    )  # fmt: skip
    return json.loads((world / report / "report.json").read_text()), (world / report / "index.html").read_text()


def whole_discordant(benchmark) -> tuple:
    return tuple(benchmark["whole"]["discordant"].values())


def test_numbers_by_hand(world, capsys):
    """Half of 40 becomes 30 of 40: +25 points in all, +50 in one type, 0 in the other; the loss falls by 0.02."""
    content, page = run(world)
    loss, detail = content["benchmarks"]
    assert whole_discordant(detail) == (10, 0, pytest.approx(2 / 1024)) and loss["whole"]["discordant"] is None
    assert [each["benchmark"] for each in (loss, detail)] == ["diffusion_loss", "mmvp_vlm"]
    whole = detail["whole"]
    assert (whole["reference"], whole["tuned"], whole["one_item"], whole["reading"]) == (50.0, 75.0, 2.5, "better")
    gain = whole["difference"]
    assert (gain["mean"], gain["n"], gain["changed"]) == (25.0, 40, 10)
    # exact: 10 of 40 changed are 12.69 to 41.20 %, and of these at least 69.15 % rose
    assert (gain["low"], gain["high"]) == pytest.approx((12.69 * (2 * 0.6915 - 1), 41.20), abs=0.01)
    shape, other = detail["types"]
    assert (shape["type"], shape["tuned"], shape["reading"]) == ("shape", 100, "better")
    assert shape["difference"]["mean"] == 50
    nothing = 100 * (1 - 0.025 ** (1 / 20))  # what 20 samples leave room for
    assert (other["difference"]["low"], other["difference"]["high"]) == pytest.approx((-nothing, nothing))
    assert other["reading"] == "noise"
    smallest = 100 * smallest_gain(40, 0.25, bound=0.0, confidence=0.95, power=0.8)
    assert whole["smallest"] == pytest.approx(smallest) and content["power"] == 0.8
    assert loss["whole"]["difference"]["mean"] == pytest.approx(-0.02) and loss["whole"]["reading"] == "better"
    assert loss["types"] == [] and loss["whole"]["one_item"] is None
    assert (content["seed"], content["confidence"], content["resamples"]) == (10, 0.95, 2000)
    printed = capsys.readouterr().out
    for text in (
        "mmvp_vlm (%)",
        "50.0",
        "75.0",
        "+25.0",
        "+10 -0",
        "0.002",
        "better",
        "noise",
        "-0.02000",
        f"in 80 of 100 cases: diffusion_loss 0.00000 mse, mmvp_vlm {smallest:.1f} points.",
    ):
        assert text in printed
    assert f"{smallest:.1f} points</span> up" in page
    for text in ("one item is 2.50 points", "+10 -0, p = 0.002", "uncorrected", "Measured: fp32; ties are image 2."):
        assert text in page
    assert "▲ +25.0" in page and "phase.lr" in page and "c" * 64 in page


def save_assistants(folder, seeds) -> None:
    """On each of 400 questions reference is right on 200, and seed i's tuned on `seeds[i]`."""
    for seed, right in enumerate(seeds):
        for role, n in (("reference", 200), ("tuned", right)):
            items = tuple(Item(id=str(i), type="a", value=float(i < n)) for i in range(400))
            made = Scores(benchmark="pope", role=role, method=role, unit="%", protocol="asked", data_sha256="d",
                          encoder_sha256="e", items=items)  # fmt: skip
            save_asked(made, seed, SHA[role], folder / f"{role}-{seed}")


def test_the_seed_of_a_language_model_is_a_level(world, capsys):
    """Three seeds that gain 20 points alike are a gain; three that scatter are none; of one the spread is unknown."""
    assert "language models" not in "".join(map(str, run(world))) + capsys.readouterr().out
    for seeds, reading, words in (
        ((280, 284, 276), "better", "better, beyond the spread over 3 language models"),
        ((280, 200, 220), "noise", "nothing shown: no larger than the spread over 3 language models"),
        ((280,), "unknown", "the spread over language models is unknown: one was trained"),
    ):
        shutil.rmtree(world / "scores/asked", ignore_errors=True)
        save_assistants(world / "scores/asked", seeds)
        content, page = run(world)
        (found,) = content["assistants"]
        assert (found["benchmark"], found["reference"], found["reading"]) == ("pope", 50.0, reading)
        assert found["difference"]["mean"] == pytest.approx(sum(seeds) / len(seeds) / 4 - 50)
        assert [each["difference"] for each in found["seeds"]] == pytest.approx([n / 4 - 50 for n in seeds])
        assert words in page and words.split(":")[0] in " ".join(capsys.readouterr().out.split())
        assert ("▲ +20.0" in page) == (reading == "better")
        assert read_report(world / "report/report.json").assistants[0].reading == reading
        metrics = json.loads((world / "report/metrics.json").read_text())
        assert metrics["pope (assistants)"]["difference"] == found["difference"]["mean"]
    assert len(content["benchmarks"]) == 2, "no benchmark of encoders"


def test_assistants_alone_are_a_report(world, capsys):
    """Where the encoders were not scored, as in a run of assistants.yaml, there is their table, and no other."""
    save_assistants(world / "asked", (280, 284))
    content, page = run(world, scores=[world / "asked"])
    assert (content["benchmarks"], len(content["assistants"])) == ([], 1)
    assert "beyond the spread over 2 language models" in page and "mmvp_vlm" not in page
    assert "better, beyond the spread over 2 language models" in " ".join(capsys.readouterr().out.split())


def test_assistants_of_another_encoder_are_refused(world):
    """Their answers would be taken for this one's: the hash of the encoder that each reads is in its scores."""
    save_assistants(world / "scores/asked", (280, 284))
    lineage = json.loads((world / "encoder/lineage.json").read_text())
    (world / "encoder/lineage.json").write_text(json.dumps(lineage | {"encoder_sha256": "f" * 64}))
    with pytest.raises(UserError, match=r"\(tuned\) reads encoder bbbbbbbbbbbb, and this is about ffffffffffff"):
        run(world)


def test_a_loss_that_rises_is_worse(world):
    """Lower is better for mse, and only there."""
    losses = [0.3] * 12
    save(world / "scores", "diffusion_loss", "reference", losses, unit="mse")
    save(world / "scores", "diffusion_loss", "tuned", [loss + 0.02 for loss in losses], unit="mse")
    content, _ = run(world)
    assert content["benchmarks"][0]["whole"]["reading"] == "worse"


def test_miou_has_its_own_words(world):
    """Two images, sky 10 of 20 to 16 of 20 and cat 5 of 10 to none of 9: 50 becomes 40 %, and n counts images."""
    before = [("1", "sky", 5, 10), ("2", "sky", 5, 10), ("2", "cat", 5, 10)]
    after = [("1", "sky", 7, 8), ("2", "sky", 9, 12), ("2", "cat", 0, 9)]  # as many pixels in all
    for role, rows in (("reference", before), ("tuned", after)):
        items = tuple(Item(id=f"{i}@{c}", type=c, value=float(inside), of=float(union)) for i, c, inside, union in rows)
        Scores(benchmark="segmentation-voc20", role=role, method="un2clip", unit="mIoU", protocol="clearclip",
               data_sha256="d", encoder_sha256=SHA[role], items=items,
        ).save(world / "scores" / "segmentation-voc20" / f"{role}.json")  # fmt: skip
    content, page = run(world)
    found = content["benchmarks"][-1]
    assert (found["whole"]["reference"], found["whole"]["tuned"], found["whole"]["difference"]["mean"]) == (50, 40, -10)
    assert (found["whole"]["difference"]["n"], found["whole"]["one_item"], found["whole"]["discordant"]) == (
        2,
        None,
        None,
    )
    assert [(row["type"], row["difference"]["mean"], row["reading"]) for row in found["types"]] == [
        ("sky", pytest.approx(30), "noise"), ("cat", -50, "noise")
    ]  # fmt: skip
    assert "Intersection over union" in page and "“n” counts images" in page


def test_same_inputs_same_bytes(world):
    """No time, no random order: the page too. A list of folders in any order is the same as their parent."""
    run(world, "one")
    run(world, "two")
    run(world, "three", scores=[world / "scores" / "mmvp_vlm", world / "scores" / "diffusion_loss"])
    for name in ("index.html", "report.json"):
        assert len({(world / report / name).read_bytes() for report in ("one", "two", "three")}) == 1


def test_the_page_is_self_contained_and_escapes(world):
    """Pictures are inside (plot, grid, training curves), nothing is fetched, a hostile name stays text."""
    _, page = run(world)
    sources = re.findall(r'(?:src|href|srcset|action)\s*=\s*"([^"]*)"', page)
    assert [source.partition(",")[0] for source in sources] == [
        "data:image/png;base64", "data:image/png;base64", "data:image/svg+xml;base64"
    ]  # fmt: skip
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG
    assert "<script" not in page and "&lt;script" in page
    assert not re.search(r"url\(|@import|<link|<iframe", page)


def test_an_encoder_without_history_or_pictures_has_a_report(world):
    """What is not there is left out."""
    (world / "encoder" / "history.json").unlink()
    (world / "reconstructions" / "grid.png").unlink()
    (world / "scores" / "diffusion_loss" / "diffusion_loss.png").unlink()
    assert "data:image" not in run(world)[1]


def test_the_table_fits_into_100_columns(world, capsys):
    """Cut off nowhere, with long names and numbers; what changed is said before everything else on the page."""
    for role, value in (("reference", 0.123456), ("tuned", 1.234567)):
        save(world / "scores", "diffusion_loss", role, [value] * 40, unit="mse", types=("a timestep of a long name",))
    page = run(world)[1]
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 100 and "…" not in printed
    head = page.partition('<div class="cards">')[0]
    assert "<strong>Better: mmvp_vlm (+25.0 points). Worse: diffusion_loss (+1.11111 mse).</strong>" in head
    assert "Who keeps text embeddings can keep them" in head and "Not judged yet: " in head


def test_a_place_among_published_models_is_on_the_page(world):
    """The sentence that `evaluate` wrote beside the scores, as text."""
    (world / "scores/mmvp_vlm/standing.txt").write_text("mmvp_vlm: number 4 of <14>.\n")
    assert "<p>mmvp_vlm: number 4 of &lt;14&gt;.</p>" in run(world)[1]


def test_many_types_are_folded_and_not_printed(world, capsys):
    """Twenty classes would bury the table in the shell; the page has them all."""
    types = tuple(f"class {i}" for i in range(20))
    for role in ("reference", "tuned"):
        save(world / "scores", "zeroshot", role, [1.0] * 40, types=types)
    page = run(world)[1]
    printed = capsys.readouterr().out
    assert "zeroshot (%)" in printed and "class 7" not in printed
    assert "All 20 types" in page and "class 7" in page


@pytest.mark.parametrize(
    ("role", "changes", "says"),
    [
        ("tuned", {"sha": "0" * 64}, "scored with encoder 000000000000, but this one is bbbbbbbbbbbb"),
        ("reference", {"sha": "0" * 64}, "scored with encoder 000000000000, but its parent is aaaaaaaaaaaa"),
        ("tuned", {"data": "0"}, "cannot be compared: data_sha256 differs"),
        ("reference", {"values": [1.0] * 39}, r"cannot be compared: n differs \(39 and 40\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(world, role, changes, says):
    """Stale scores are never compared; the message names the benchmark."""
    save(world / "scores", "mmvp_vlm", role, **({"values": [1.0] * 40} | changes))
    with pytest.raises(UserError, match=f"mmvp_vlm.*{says}"):
        run(world)


def test_missing_inputs_are_named(world):
    """One role alone, or no lineage, is one line that says what to run."""
    (world / "scores" / "mmvp_vlm" / "tuned.json").unlink()
    with pytest.raises(UserError, match="mmvp_vlm has no scores of the tuned encoder"):
        run(world)
    path = world / "encoder" / "lineage.json"
    lineage = json.loads(path.read_text())
    path.write_text(json.dumps(lineage | {"parents": {"shards": "c" * 64}}))
    with pytest.raises(UserError, match=r"does not say which CLIP was tuned \(parents.clip\)"):
        run(world)
    path.write_text('{"method": "un2clip"}')
    with pytest.raises(UserError, match="missing parameter lineage.seed: an integer.*finetune"):
        run(world)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"confidence": 95.0}, "confidence must be"),
        ({"confidence": -1.0}, "confidence must be"),
        ({"power": 80.0}, "power must be at least 0.5 and below 1"),
        ({"resamples": 1}, "resamples must be"),
        ({"resamples": 10**12}, "resamples must be"),
    ],
)
def test_parameters_have_ranges(changes, says):
    """95 is not a confidence of 95 %."""
    with pytest.raises(ValueError, match=says):
        Compare(**({"confidence": 0.95, "power": 0.8, "resamples": 1000} | changes))


def test_metrics_for_dvc_are_the_reports(world):
    """metrics.json is flat and holds the whole-benchmark numbers of report.json."""
    report, _ = run(world)
    metrics = json.loads((world / "report/metrics.json").read_text())
    assert metrics["mmvp_vlm"] == {"reference": 50.0, "tuned": 75.0, "difference": 25.0}
    assert set(metrics) == {each["benchmark"] for each in report["benchmarks"]}
