"""Promotion against a real MLflow store: who becomes champion, and how the encoder comes back out."""

import dataclasses
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from tests.candidates import HOW, MEAN, RULES, Candidate, new_weights
from un2clip import tracking
from un2clip.__main__ import main
from un2clip.config import build, read_params
from un2clip.errors import UserError
from un2clip.evidence.gate import Rule
from un2clip.evidence.scores import Scores
from un2clip.evidence.units import UNITS
from un2clip.models.registry import EVIDENCE, FILES, Registry, export, obtain_model
from un2clip.sources.hub import Source
from un2clip.stages.compare import compare
from un2clip.stages.promote import Promote


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder whose mlflow.db is made once (2 s)."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def registry(store, monkeypatch, request):
    """An empty registered model of the test's own, where stages look for it."""
    for variable in ("MLFLOW_TRACKING_URI", "UN2CLIP_TRACKING"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(store)
    return Registry(re.sub(r"[^\w.-]", "-", request.node.name))


@pytest.fixture(scope="module")
def weights():
    """A real open_clip model, as tiny as it gets."""
    return new_weights()


@pytest.fixture
def candidate(tmp_path, weights):
    """Make candidates in this test's folder."""
    return lambda name, **changes: Candidate(tmp_path, weights, name, **changes)


def by_hand_version(registry, folder, **tags):
    """A version that is a folder's files and no MLflow model, as every version was once."""
    client = registry.client
    client.create_registered_model(registry.name)
    experiment = client.get_experiment_by_name("un2clip").experiment_id
    model_id = client.create_logged_model(experiment, registry.name, tags=tags).model_id
    client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    client.create_model_version(registry.name, f"models:/{model_id}", tags=tags)


def test_the_champion_is_who_has_to_be_beaten(registry, candidate):
    """The gate asks the champion's scores as registered, not the reference beside the challenger."""
    first, weaker, stronger = (candidate(f"c{n}", detail=n) for n in (160, 130, 200))

    decision = first.promote(registry)
    assert decision["passed"] and decision["champion"]["version"] is None
    assert registry.aliases() == {"challenger": "1", "champion": "1"}

    decision = weaker.promote(registry)  # better than the reference (100), worse than the champion (160)
    assert not decision["passed"] and decision["champion"]["version"] == "1"
    assert decision["rules"][0]["champion"] == 40.0 and decision["rules"][0]["challenger"] == 32.5
    assert registry.aliases() == {"challenger": "2", "champion": "1"}
    assert registry.version("2").tags["gate"] == "refused"

    assert stronger.promote(registry)["passed"]
    assert registry.aliases() == {"challenger": "3", "champion": "3"}


def test_every_encoder_that_was_judged_is_a_look(registry, candidate, capsys):
    """Counted against the same champion and on the same data; judged again it keeps its number; deleted it counts."""
    made = {name: candidate(name, detail=detail) for name, detail in (("a", 101), ("b", 102), ("c", 160))}
    assert [made[name].promote(registry)["looks"] for name in "ab"] == [1, 2]
    kept = (made["a"].report.parent / "decision/decision.json").read_bytes()
    made["a"].promote(registry)
    assert (made["a"].report.parent / "decision/decision.json").read_bytes() == kept
    registry.client.delete_model_version(registry.name, "2")
    capsys.readouterr()
    decision = made["c"].promote(registry)
    assert decision["looks"] == 3 and decision["passed"]
    assert "Encoders judged on these data since the last champion: 3;" in capsys.readouterr().out
    description = registry.client.get_model_version(registry.name, "3").description
    assert "| 99.44 % interval |" in description and "* Encoders judged on these data" in description
    assert made["c"].promote(registry)["looks"] == 3, "it is champion now, and decides as it did"
    assert candidate("d", detail=170).promote(registry)["looks"] == 1, "of another champion"
    assert candidate("e", detail=170, data="0").promote(registry)["looks"] == 1, "on other data"


def test_manual_leaves_the_champion_to_a_person(registry, candidate, capsys):
    """The gate passes, and only the challenger's alias moves; the version carries what a person needs."""
    made = candidate("a", detail=160)
    decision = made.promote(registry, champion="manual")
    assert decision["passed"] and registry.aliases() == {"challenger": "1"}
    outcome = made.done()["outcome"]
    assert "for a person to decide" in outcome and outcome in capsys.readouterr().out
    page = (made.report.parent / "decision/index.html").read_text()
    assert f"<strong>The gate passed it, judged against the reference encoder. {outcome}</strong>" in page
    assert "<li>mmvp_vlm gained 15 points over 400 samples" in page
    kept = made.report.parent / "kept"
    registry.fetch_evidence(registry.version("1"), kept)
    assert "judged against the reference encoder.</strong>" in next(kept.rglob("index.html")).read_text()
    assert registry.version("1").tags.items() >= {
        "seed": "3", "encoder_sha256": made.sha256, "made_from.shards": "c" * 64, "data_sha256.zeroshot": "d" * 64,
    }.items()  # fmt: skip


def test_the_versions_page_is_for_people(registry, candidate):
    """Its tags can be read, and its description is before and after with n and interval, and the gate's sentences."""
    made = candidate("a", detail=160, zeroshot=280)
    decision = made.promote(registry)
    shown = registry.client.get_model_version(registry.name, "1")
    low, high = (decision["rules"][0]["gain"][bound] for bound in ("low", "high"))
    assert {key: value for key, value in shown.tags.items() if key != "zeroshot"} == {
        "gate": "refused", "method": "un2clip", "mmvp_vlm": f"40.0 % (25.0), +15.0 ±{(high - low) / 2:.1f}",
    }  # fmt: skip
    assert shown.tags["zeroshot"].startswith("70.0 % (75.0), -5.0 ±")
    verdict, table, sentences = shown.description.split("\n\n")
    assert verdict == "**Refused**, judged against the reference encoder."
    row = f"| mmvp_vlm | superiority | 400 samples | 25.0 | 40.0 % | +15.0 | {low:+.1f} to {high:+.1f} | passed |"
    assert table.splitlines()[2] == row
    assert table.splitlines()[0] == "| benchmark | rule | n | before | after | gain | 95 % interval |  |"
    assert sentences.splitlines() == [f"* {rule['sentence']}" for rule in decision["rules"]]
    candidate("b", detail=300, data="0").promote(registry)  # held against the reference, for nobody is champion
    registry.set_alias("champion", "1")
    candidate("c", detail=320, data="0").promote(registry)
    other = registry.client.get_model_version(registry.name, "3")
    assert (
        other.tags["mmvp_vlm"] == "cannot be judged"
        and "| mmvp_vlm | superiority |  |  |  |  |  | failed |" in other.description
    )


def test_the_models_own_page_says_how_to_load_it(registry, candidate):
    """Written once, with its name; what a person writes there stays."""
    candidate("a", detail=160).promote(registry)
    (model,) = registry.client.search_registered_models(f"name = '{registry.name}'")
    assert f'mlflow.pyfunc.load_model("models:/{registry.name}@champion")' in model.description
    registry.client.update_registered_model(registry.name, "ours")
    candidate("b", detail=200).promote(registry)
    (model,) = registry.client.search_registered_models(f"name = '{registry.name}'")
    assert model.description == "ours"


def test_a_version_whose_model_was_deleted(registry, candidate, tmp_path):
    """Somebody deleted what is behind the champion: nothing is known of it, so it is neither beaten nor handed out."""
    candidate("a", detail=160).promote(registry)
    registry.client.delete_logged_model(registry.version("1").model_id)
    decision = candidate("b", detail=200).promote(registry)
    assert not decision["passed"] and "no scores of the champion" in decision["rules"][0]["sentence"]
    with pytest.raises(UserError):
        export("champion", tmp_path / "out", registry.name)


def test_the_same_encoder_is_registered_once(registry, candidate):
    """Promoting again refreshes the evidence and the verdict, and makes no second version."""
    made = candidate("a", detail=160)
    made.promote(registry)
    decision = made.promote(registry)
    assert decision["passed"] and made.done()["version"] == "1"
    assert made.done()["outcome"].endswith("version 1 is the challenger, and is the champion now.")
    assert registry.aliases() == {"challenger": "1", "champion": "1"}
    assert len(registry.client.search_model_versions(f"name = '{registry.name}'")) == 1
    strict = (Rule(benchmark="mmvp_vlm", gain_above=50.0, data_sha256=""),)
    assert not made.promote(registry, rules=strict)["passed"]
    assert registry.version("1").tags["gate"] == "refused"


#: Every call of the registry that changes it, in the order of a promotion.
CALLS = ("log_artifacts", "register", "describe", "set_alias challenger", "set_alias champion")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_promotion_that_was_killed_decides_the_same_again(registry, candidate, monkeypatch, call, before):
    """Cut off before or after any change of the registry: the decision is there, and both files end up the same."""
    name, _, alias = call.partition(" ")
    candidate("a", detail=130).promote(registry)
    made, whole, kept = candidate("b", detail=200), getattr(Registry, name), {}
    folder = made.report.parent / "decision"

    def killed(self, *given):
        if alias in ("", given[0]):
            if not before:
                whole(self, *given)
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(Registry, name, killed)
    with pytest.raises(KeyboardInterrupt):
        made.promote(registry)
    kept["killed"] = (folder / "decision.json").read_bytes()
    assert not (folder / "registry.json").exists()
    monkeypatch.setattr(Registry, name, whole)
    for turn in ("again", "once more"):
        made.promote(registry)
        kept[turn] = (folder / "decision.json").read_bytes()
        assert made.done()["outcome"].endswith("version 2 is the challenger, and is the champion now.")
    assert len(set(kept.values())) == 1 and json.loads(kept["again"])["champion"]["version"] == "1"
    assert registry.aliases() == {"challenger": "2", "champion": "2"}


def test_whom_it_was_judged_against_may_be_gone(registry, candidate):
    """The champion is promoted again after a person deleted the one before: it cannot be judged, and stays champion."""
    candidate("a", detail=130).promote(registry)
    made = candidate("b", detail=200)
    assert made.promote(registry)["passed"]
    registry.client.delete_model_version(registry.name, "1")
    decision = made.promote(registry)
    assert decision["champion"] == {"who": "version 1, which was deleted", "version": "1"} and not decision["passed"]
    assert registry.aliases() == {"challenger": "2", "champion": "2"}


def test_the_loser_of_a_race_keeps_its_decision(registry, candidate, monkeypatch):
    """The champion moved while it was judged: it is told, and its decision says whom it was judged against."""
    first, other, second = candidate("a", detail=130), candidate("c", detail=120), candidate("b", detail=200)
    first.promote(registry)
    other.promote(registry)
    describe = Registry.describe

    def overtaken(self, *given):
        describe(self, *given)
        registry.set_alias("champion", "2")  # by another process

    monkeypatch.setattr(Registry, "describe", overtaken)
    with pytest.raises(UserError, match="version 3 is the challenger, but the alias champion was moved meanwhile"):
        second.promote(registry)
    decision = json.loads((second.report.parent / "decision/decision.json").read_text())
    assert decision["passed"] and decision["champion"]["version"] == "1" and "outcome" not in decision


def test_scores_on_other_data_are_refused(registry, candidate):
    """The champion was measured on other pairs: no comparison, no new champion, but a registered challenger."""
    candidate("a", detail=160).promote(registry)
    decision = candidate("b", detail=300, data="0").promote(registry)
    assert not decision["passed"] and "data_sha256 differs" in decision["rules"][0]["sentence"]
    assert registry.aliases() == {"challenger": "2", "champion": "1"}


def test_a_champion_with_scores_of_an_older_form_is_not_beaten(registry, candidate):
    """Its scores had no protocol yet: the challenger is refused and registered, and told why."""
    first = candidate("a", detail=160)
    gather = first.promote(registry)
    run_id = registry.version("1").tags["evidence_run"]
    for benchmark in ("mmvp_vlm", "zeroshot"):
        content = json.loads((first.scores / benchmark / "tuned.json").read_text())
        del content["protocol"]
        (first.scores / benchmark / "tuned.json").write_text(json.dumps(content))
    registry.client.log_artifacts(run_id, str(first.scores), "evidence/scores")
    decision = candidate("b", detail=200).promote(registry)
    assert gather["passed"] and not decision["passed"]
    assert "cannot be read any more" in decision["champion"]["who"]
    assert "no scores of the champion" in decision["rules"][0]["sentence"]
    assert registry.aliases() == {"challenger": "2", "champion": "1"}


def test_a_champion_without_evidence_is_not_beaten(registry, candidate, tmp_path):
    """Somebody registered a folder by hand and made it champion: nothing is known about it."""
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    (by_hand / "weights").write_bytes(b"")
    by_hand_version(registry, by_hand)
    registry.set_alias("champion", "1")
    decision = candidate("a", detail=300).promote(registry)
    assert not decision["passed"] and "no scores of the champion" in decision["rules"][0]["sentence"]
    assert registry.aliases()["champion"] == "1"


def test_evidence_of_another_encoder_is_no_evidence(registry, candidate):
    """The champion's tag leads to the run of a weaker encoder: its scores are not taken for the champion's."""
    candidate("a", detail=160).promote(registry)
    candidate("b", detail=110).promote(registry)
    registry.tag(registry.version("1"), {}, {EVIDENCE: registry.version("2").tags[EVIDENCE]})
    decision = candidate("c", detail=150).promote(registry)
    assert not decision["passed"] and "no scores of the champion" in decision["rules"][0]["sentence"]


def test_export_gives_the_encoder_back(registry, candidate, tmp_path):
    """Exactly the two files, the same bytes, and open_clip loads them; a folder in use stays as it is."""
    made = candidate("a", detail=160)
    made.promote(registry)
    to = tmp_path / "new" / "folder"
    export(alias="champion", to=to, registered_model=registry.name)
    assert sorted(path.name for path in to.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (to / name).read_bytes() == (made.encoder / name).read_bytes() and not (to / name).is_symlink()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{to}")
    expected = load_file(made.encoder / FILES[0])
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert transform.transforms[-1].mean == tuple(MEAN) or list(transform.transforms[-1].mean) == MEAN
    with pytest.raises(UserError, match="is in use and nothing is overwritten"):
        export(alias="champion", to=to, registered_model=registry.name)


def test_a_registered_encoder_is_a_source(registry, candidate, tmp_path, monkeypatch):
    """models:/name@alias and models:/name/number give the promoted files; export gives other forms of them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    made = candidate("a", detail=160)
    (made.encoder / "tokenizer.json").write_text("{}")
    made.promote(registry)
    for place in ("@champion", "/1"):
        folder = obtain_model(Source(location=f"models:/{registry.name}{place}", revision="", sha256={}), name="x")
        for name in (*FILES, "tokenizer.json"):
            assert (folder / name).read_bytes() == (made.encoder / name).read_bytes()
    export("champion", tmp_path / "hf", registry.name, "hf")
    assert (tmp_path / "hf/model.safetensors").is_file()
    for place, message in (("@best", "no alias 'best'"), ("/7", "MLflow refused: .*7")):
        with pytest.raises(UserError, match=message):
            obtain_model(Source(location=f"models:/{registry.name}{place}", revision="", sha256={}), name="x")


def test_a_version_of_before_is_read(registry, candidate, tmp_path, monkeypatch):
    """Once a version was the folder itself: it is exported, is a source, and is found when its encoder comes again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    made = candidate("a", detail=160)
    files = tmp_path / "files"
    files.mkdir()
    for name in FILES:
        (files / name).write_bytes((made.encoder / name).read_bytes())
    by_hand_version(registry, files, encoder_sha256=made.sha256)
    registry.set_alias("challenger", "1")
    export("challenger", tmp_path / "out", registry.name)
    folder = obtain_model(Source(location=f"models:/{registry.name}/1", revision="", sha256={}), name="x")
    for name in FILES:
        expected = (made.encoder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected == (folder / name).read_bytes()
    made.promote(registry)
    assert made.done()["version"] == "1" and registry.version("1").tags["gate"] == "passed"


def test_export_names_the_aliases_there_are(registry, candidate, tmp_path):
    """An unknown alias, or an unknown model, is one line."""
    with pytest.raises(UserError, match="no alias 'champion'; it has: none yet"):
        export(alias="champion", to=tmp_path / "out", registered_model=registry.name)
    candidate("a", detail=160).promote(registry)
    with pytest.raises(UserError, match=r"no alias 'best'; it has: challenger \(version 1\), champion \(version 1\)"):
        export(alias="best", to=tmp_path / "out", registered_model=registry.name)
    assert not (tmp_path / "out").exists()


def test_export_refuses_what_is_no_checkpoint(registry, tmp_path):
    """A version that somebody registered by hand, without weights; and a name that is none."""
    (tmp_path / "by_hand").mkdir()
    (tmp_path / "by_hand" / "notes.txt").write_text("later")
    by_hand_version(registry, tmp_path / "by_hand")
    registry.set_alias("champion", "1")
    with pytest.raises(UserError, match=r"version 1 of .* has no open_clip_model.safetensors and no open_clip_config"):
        export("champion", tmp_path / "out", registry.name)
    with pytest.raises(UserError, match="registered_model must be letters"):
        export("champion", tmp_path / "out", "a/b")
    assert not (tmp_path / "out").exists()


def test_export_refuses_other_weights(registry, candidate, tmp_path):
    """A version whose weights are not those that were judged is not handed out."""
    candidate("a", detail=160).promote(registry)
    registry.tag(registry.version("1"), {}, {"encoder_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"not what was registered.*nothing was written"):
        export(alias="champion", to=tmp_path / "out", registered_model=registry.name)
    assert not (tmp_path / "out").exists()


def test_without_tracking_there_is_a_decision_and_no_version(registry, candidate, monkeypatch):
    """UN2CLIP_TRACKING=off: judged against the reference, written down, said so."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "off")
    made = candidate("a", detail=160)
    assert made.promote(registry)["passed"] and registry.aliases() == {}
    assert made.done() == {"version": None, "outcome": "Nothing was registered: tracking is off."}


def test_inputs_that_do_not_belong_together_are_refused(registry, candidate):
    """Other weights than the lineage's, a report or scores of another encoder: nothing is decided."""
    made, other = candidate("a", detail=160), candidate("b", detail=130)
    report, scores, model = made.report, made.scores, (made.encoder / FILES[0]).read_bytes()
    made.report = other.report
    with pytest.raises(UserError, match=r"is about encoder .*run `compare` again"):
        made.promote(registry)
    made.report, made.scores = report, other.scores
    with pytest.raises(UserError, match="was scored with encoder"):
        made.promote(registry)
    made.scores = scores
    stale = [scores / name / "reference.json" for name in ("mmvp_vlm", "zeroshot")]
    kept = [path.read_text() for path in stale]
    for path, text in zip(stale, kept, strict=True):
        path.write_text(text.replace("a" * 64, "f" * 64))
    with pytest.raises(UserError, match=r"\(reference\) was scored with encoder ffffffffffff, but its parent is aaaa"):
        made.promote(registry)
    for path, text in zip(stale, kept, strict=True):
        path.write_text(text)
    lineage = json.loads((made.encoder / "lineage.json").read_text())
    (made.encoder / "lineage.json").write_text(json.dumps(lineage | {"complete": False}))
    with pytest.raises(UserError, match="a training that failed"):
        made.promote(registry)
    (made.encoder / "lineage.json").write_text(json.dumps(lineage))
    (made.encoder / FILES[0]).write_bytes((other.encoder / FILES[0]).read_bytes())
    with pytest.raises(UserError, match=r"its lineage\.json says"):
        made.promote(registry)
    (made.encoder / FILES[0]).unlink()
    with pytest.raises(UserError, match=r"has no open_clip_model\.safetensors; run"):
        made.promote(registry)
    (made.encoder / FILES[0]).write_bytes(model)
    assert made.promote(registry)["passed"]


def test_an_encoder_that_is_not_finite_is_no_champion(registry, candidate):
    """A weight of NaN, and weights that are finite and overflow: all hashes agree, and nothing is decided."""
    made = candidate("a", detail=160)
    made.change(**{"visual.proj": torch.full((32, 16), torch.nan)})
    with pytest.raises(UserError, match=r"visual.proj is not finite"):
        made.promote(registry)
    made.change(**{"visual.proj": torch.full((32, 16), 3e38), "visual.ln_post.bias": torch.full((32,), 3e38)})
    with pytest.raises(UserError, match="the embedding of image 0 of 1 is not finite"):
        made.promote(registry)
    assert registry.aliases() == {}


def test_a_changed_text_tower_is_refused(registry, candidate):
    """No method touches it, so it must be the parent's by the lineage; hashes of the whole checkpoint agree."""
    made = candidate("a", detail=160)
    made.change(positional_embedding=made.weights["positional_embedding"] + 1.0)
    with pytest.raises(UserError, match="holds the text tower .* the CLIP it was tuned from has"):
        made.promote(registry)
    assert registry.aliases() == {}


def test_a_text_tower_of_another_than_the_champions_is_refused(registry, candidate):
    """It was tuned from another CLIP: every rule passes, and text embeddings that were kept would not fit."""
    candidate("a", detail=160).promote(registry)
    decision = candidate("b", detail=300, text=1.0).promote(registry)
    assert all(rule["passed"] for rule in decision["rules"]) and not decision["passed"]
    assert "is not that of version 1, the champion" in decision["objections"][0]
    assert registry.aliases() == {"challenger": "2", "champion": "1"}


def test_scores_that_no_evaluation_found_are_refused(registry, candidate):
    """The file agrees with itself, and not with the hash that its run kept; what was never tracked is believed."""
    made = candidate("a", detail=160)
    folder = made.scores / "mmvp_vlm"
    kept = {path: path.read_text() for path in folder.glob("*.json")}
    for path in kept:
        path.unlink()
    with tracking.stage_run("evaluate", params={}, names={"benchmark": "mmvp_vlm", "scores": folder}):
        for path, text in kept.items():
            path.write_text(text)
    made._save("tuned", "mmvp_vlm", 300, "d")
    with pytest.raises(UserError, match=r"mmvp_vlm \(tuned\) is not what any evaluation of encoder .* found"):
        made.promote(registry)
    made._save("tuned", "mmvp_vlm", 160, "d")
    assert made.promote(registry)["passed"]


@pytest.mark.parametrize(("key", "value"), [("confidence", -1.0), ("resamples", 1), ("resamples", 10**12), ("seed", 3)])
def test_a_report_of_other_intervals_is_refused(registry, candidate, key, value):
    """The numbers say how sure the gate must be, and not a file beside the scores."""
    made = candidate("a", detail=160)
    report = json.loads((made.report / "report.json").read_text())
    (made.report / "report.json").write_text(json.dumps(report | {key: value}))
    with pytest.raises(UserError, match=rf"made with {key} {value}, not .* as the numbers say; run `compare` again"):
        made.promote(registry)


def test_the_repositorys_own_rules_are_valid():
    """params.yaml as it is checked in, and a rule with a typing error in it."""
    section = read_params(Path(__file__).parents[2] / "params.yaml")["promote"]
    assert {rule.benchmark for rule in build(Promote, section, "promote").rules} == {"mmvp_vlm", "zeroshot"}
    section["rules"][1]["gain_over"] = section["rules"][1].pop("gain_above")
    with pytest.raises(UserError, match=r"unknown parameter promote.rules\[1\].gain_over"):
        build(Promote, section, "promote")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rules": ()}, "rules must name at least one benchmark"),
        ({"rules": (RULES[0], RULES[0])}, "each once, got mmvp_vlm, mmvp_vlm"),
        ({"rules": (Rule(benchmark="mmvp_vlm", gain_above=100.0, data_sha256=""),)}, "mmvp_vlm has 135 items, and no"),
        ({"registered_model": "a' or name != '"}, "registered_model must be letters"),
        ({"registered_model": "a/b"}, "registered_model must be letters"),
    ],
)
def test_parameters_have_ranges(changes, says):
    """No rule would mean that anything passes or nothing; a name must not reach into a search."""
    with pytest.raises(ValueError, match=says):
        Promote(**({"registered_model": "un2clip", "champion": "auto", "rules": RULES} | changes))


def test_a_number_of_the_whole_set_may_not_be_a_rule(registry, candidate, monkeypatch):
    """Such a rule is refused before anything is registered; without it, the number is evidence like the rest."""
    monkeypatch.setitem(UNITS, "FID", dataclasses.replace(UNITS["mse"], name="FID", aggregate=None))
    made = candidate("a", detail=160)
    for role, number, sha256 in (("reference", 14.0, "a" * 64), ("tuned", 12.0, made.sha256)):
        Scores(benchmark="fid", role=role, method=role, unit="FID", protocol="", data_sha256="d", items=(),
               encoder_sha256=sha256, number=number).save(made.scores / "fid" / f"{role}.json")  # fmt: skip
    with pytest.raises(UserError, match=r"promote\.rules names fid, but FID is one number of the whole set"):
        made.promote(registry, rules=(*RULES, Rule(benchmark="fid", gain_above=0.0, data_sha256="")))
    assert registry.aliases() == {}
    assert made.promote(registry)["passed"]
    metrics = registry.client.get_logged_model(registry.version("1").model_id).metrics
    assert {("fid/tuned", 12.0), ("fid/reference", 14.0)} <= {(each.key, each.value) for each in metrics}


def test_the_reports_table_can_be_compared(registry, candidate, tmp_path):
    """`compare` keeps its table in a form that MLflow sets beside another run's: the numbers of report.json."""
    (tmp_path / "pictures").mkdir()
    runs, expected = [], {}
    for name, detail in (("a", 160), ("b", 200)):
        made = candidate(name, detail=detail)
        names = {"scores": [made.scores], "encoder": made.encoder, "reconstructions": tmp_path / "pictures",
                 "report": tmp_path / f"report-{name}"}  # fmt: skip
        with tracking.stage_run("compare", params={}, names=names):
            compare(HOW["compare"], seed=HOW["seed"], **names)
            runs.append(tracking.active_run())
        for each in json.loads((names["report"] / "report.json").read_text())["benchmarks"]:
            whole = each["whole"]
            row = (each["benchmark"], "all", whole["difference"]["n"], whole["reference"], whole["tuned"])
            bounds = (whole["difference"]["low"], whole["difference"]["high"], whole["discordant"]["p_value"])
            expected[runs[-1], each["benchmark"]] = (*row, whole["difference"]["mean"], *bounds)
    experiment = registry.client.get_experiment_by_name("un2clip").experiment_id
    table = registry.client.load_table(experiment, "comparison.json", run_ids=runs, extra_columns=["run_id"])
    columns = ["benchmark", "type", "n", "reference", "tuned", "difference", "low", "high", "p"]
    found = {(row["run_id"], row["benchmark"]): tuple(row[each] for each in columns) for _, row in table.iterrows()}
    assert found.keys() == expected.keys() and len(table) == 4
    for key, row in found.items():
        assert row[:2] == expected[key][:2] and row[2:] == pytest.approx(expected[key][2:])


def test_rollback_gives_the_champion_before_back(registry, candidate, capsys):
    """The alias moves, the reason is kept, and the gate alone does not bring the withdrawn one back; a person may."""
    first, second = candidate("a", detail=160), candidate("b", detail=200)
    for made in (first, second):
        made.promote(registry)
    words = ["rollback", "--model", registry.name, "--reason", " blurs\n faces "]
    assert main(words) == 0 and "version 1 is the champion again; version 2 was rolled back: blurs faces" in (
        capsys.readouterr().out
    )
    assert registry.aliases() == {"challenger": "2", "champion": "1"}
    assert registry.version("2").tags["rolled_back"] == "blurs faces"
    description = registry.client.get_model_version(registry.name, "2").description
    assert description.startswith("Rolled back: blurs faces\n\n**Passed**") and "mmvp_vlm gained" in description
    assert second.promote(registry)["passed"] and registry.aliases()["champion"] == "1"
    assert registry.client.get_model_version(registry.name, "2").description == description
    assert "was rolled back (blurs faces), so only a person makes it champion again" in second.done()["outcome"]
    registry.set_alias("champion", "2")  # by a person
    second.promote(registry)
    assert second.done()["outcome"].endswith("and is the champion now.")


def test_rollback_says_where_it_cannot_go(registry, candidate, capsys):
    """No champion, none before, a version that is gone, no reason: a sentence, and the alias stays."""
    reason = ["--model", registry.name, "--reason", "why"]

    def refused(*words):
        assert main(["rollback", *words]) == 2
        return capsys.readouterr().err

    assert "no alias 'champion'; it has: none yet" in refused(*reason)
    candidate("a", detail=160).promote(registry)
    assert "version 1 had no champion before it; --to=NUMBER names a version" in refused(*reason)
    assert "version 1 is the champion already" in refused(*reason, "--to", "1")
    assert "has no version 7 any more" in refused(*reason, "--to", "7")
    assert "--reason must say why" in refused("--model", registry.name, "--reason", " ")
    candidate("b", detail=200).promote(registry)
    registry.client.delete_model_version(registry.name, "1")
    assert "has no version 1 any more" in refused(*reason)
    assert registry.aliases()["champion"] == "2" and "rolled_back" not in registry.version("2").tags
    candidate("c", detail=150).promote(registry)
    assert main(["rollback", *reason, "--to", "3"]) == 0 and registry.aliases()["champion"] == "3"
