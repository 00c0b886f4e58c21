"""promote: the gate's decision in writing, then the encoder as a version in the registry."""

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from un2clip import tracking
from un2clip.errors import UserError
from un2clip.evidence.gate import Decision, Rule, decide, never_a_rule
from un2clip.evidence.lineage import DECISION, LINEAGE, REGISTRY, read_lineage, tuned_pairs
from un2clip.evidence.power import never
from un2clip.evidence.precision import refused
from un2clip.evidence.report import PAGE, read_report
from un2clip.evidence.scores import Scores, collect_scores
from un2clip.evidence.verdict import as_markdown, decided, in_short
from un2clip.files.outputs import write_json
from un2clip.files.texts import read_text
from un2clip.models.clip import encoder_sha256
from un2clip.models.loading import check_loads
from un2clip.models.registry import EVIDENCE, FILES, JUDGED_AGAINST, LOOK, ROLLED_BACK, Registry, Version, check_name
from un2clip.sources.catalogue import published_items
from un2clip.stages.compare import Compare
from un2clip.tracking import store


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Section `promote` of params.yaml.

    Attributes:
        registered_model: name in the MLflow registry.
        champion: manual (a person moves the alias) or auto (it moves when the gate passes).
        rules: what the gate asks for; the intervals are made by the section `compare`.
    """

    registered_model: str
    champion: Literal["manual", "auto"]
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        check_name(self.registered_model)
        named = [rule.benchmark for rule in self.rules]
        if not named or len(set(named)) != len(named):
            raise ValueError(f"rules must name at least one benchmark and each once, got {', '.join(named) or 'none'}")
        for rule in self.rules:
            n = published_items(rule.benchmark) if rule.gain_above > 0.0 else 0
            if n and never(n, rule.gain_above / 100.0, confidence=0.5):  # at the least that `compare` may ask for
                raise ValueError(
                    f"rules: {rule.benchmark} has {n} items, and no outcome of them has a lower bound above "
                    f"{rule.gain_above:g}; lower gain_above, or name a benchmark of more items"
                )


@dataclass(frozen=True, kw_only=True)
class Champion:
    """What the challenger has to beat.

    Attributes:
        who: in words.
        version: its number, where it has one.
        scores: by benchmark.
        text_sha256: hash of its text tower; "" where that is not known.
    """

    who: str
    version: str | None
    scores: dict[str, Scores]
    text_sha256: str


def promote(
    params: Promote,
    *,
    compare: Compare,
    seed: int,
    scores: list[Path],
    encoder: Path,
    report: Path,
    decision: Path,
) -> None:
    """Write decision.json, register the encoder, and write what happened to registry.json and onto the report's page.

    The decision is a function of the scores, the numbers and the champion: a promotion that was killed anywhere and is
    run again writes the same bytes.

    Without a tracked run around it (UN2CLIP_TRACKING=off, or a plain call) the decision is written and
    nothing is registered. The same encoder is registered once: again, it only gets the newer evidence.

    Args:
        params: name of the model, rules, who moves the champion's alias.
        compare: how intervals are made: the numbers' own section, for the report is only a file.
        seed: of the bootstrap.
        scores: folders with the scores files of both encoders.
        encoder: the tuned checkpoint.
        report: what `compare` wrote about it, with the same intervals.
        decision: output folder.

    Raises:
        UserError: the inputs do not belong together, or MLflow refuses.
    """
    lineage = read_lineage(encoder)
    if not lineage["complete"]:
        raise UserError(
            f"{encoder} is what was left of a training that failed; run `un2clip finetune` to its end first"
        )
    if missing := [name for name in FILES if not (encoder / name).is_file()]:
        raise UserError(f"{encoder} has no {' and no '.join(missing)}; run `un2clip finetune` first")
    found = encoder_sha256(encoder)
    if found != lineage["encoder_sha256"]:
        raise UserError(f"{encoder} holds weights {found[:12]}, its lineage.json says {lineage['encoder_sha256'][:12]}")
    check_loads(encoder, lineage["text_sha256"])
    interval: dict[str, Any] = {"confidence": compare.confidence, "resamples": compare.resamples, "seed": seed}
    made = read_report(report / "report.json")
    if made.encoder_sha256 != found:
        raise UserError(f"{report} is about encoder {made.encoder_sha256[:12]}, not {found[:12]}; run `compare` again")
    there = {key: getattr(made, key) for key in interval}
    if differs := [f"{key} {there[key]}, not {value}" for key, value in interval.items() if there[key] != value]:
        raise UserError(f"{report} was made with {' and '.join(differs)} as the numbers say; run `compare` again")
    pairs = tuned_pairs(scores, lineage)
    for _, tuned in pairs:
        if tuned.benchmark in [rule.benchmark for rule in params.rules] and (
            reason := never_a_rule(tuned) or refused(tuned, made.precisions)
        ):
            raise UserError(f"promote.rules names {tuned.benchmark}, but {reason}")
    run_id = tracking.active_run()
    registry = Registry(params.registered_model) if run_id else None
    with store.as_user_error():
        if registry:
            for each in (scores for pair in pairs for scores in pair):
                store.check_measured(registry.client, each)
        alias = registry.aliases().get("champion") if registry else None
        champion = _champion(registry, alias, found, {pair[0].benchmark: pair[0] for pair in pairs})
    looks = _looks(registry, champion, found, pairs, params.rules)
    judged = decide(
        champion.scores, {pair[1].benchmark: pair[1] for pair in pairs}, params.rules, **interval,
        power=compare.power, looks=looks,
    )  # fmt: skip
    judged = dataclasses.replace(judged, objections=_objections(champion, lineage["text_sha256"]))
    content: dict[str, Any] = {
        "passed": judged.passed,
        "champion": {"who": champion.who, "version": champion.version},
        "challenger": {"method": lineage["method"], "encoder_sha256": found},
        "rules": [dataclasses.asdict(finding) for finding in judged.findings],
        "objections": judged.objections,
        "looks": judged.looks,
    } | interval
    (decision / REGISTRY).unlink(missing_ok=True)  # of an earlier call
    write_json(decision / DECISION, content)  # before the registry is touched: the decision does not depend on it
    _write_page(report, decision, judged, champion, "")
    done: dict[str, Any] = {"version": None, "outcome": "Nothing was registered: tracking is off."}
    if registry and run_id:
        with store.as_user_error(), store.alone(registry.client), tempfile.TemporaryDirectory() as folder:
            registry.log_artifacts(run_id, _gather(Path(folder), pairs, encoder, report, decision))
            shown = {"gate": "passed" if judged.passed else "refused", "method": lineage["method"]}
            shown |= {finding.rule.benchmark: in_short(finding) for finding in judged.findings}
            kept = _hashes(lineage, pairs) | {
                EVIDENCE: run_id,
                JUDGED_AGAINST: champion.version or "",
                LOOK: str(looks),
            }
            version = _register(registry, encoder, shown, kept, run_id)
            number = version.number
            registry.log_scores(version, (scores for pair in pairs for scores in pair), run_id)
            page = as_markdown(judged, who=champion.who, confidence=compare.confidence)
            if why := version.tags.get(ROLLED_BACK):
                page = f"Rolled back: {why}\n\n{page}"
            registry.describe(number, page)
            done = {"version": number, "outcome": _move_aliases(registry, params, version, alias, judged)}
    write_json(decision / REGISTRY, done)
    _write_page(report, decision, judged, champion, done["outcome"])
    for sentence in judged.sentences:
        print(sentence)
    print(f"Judged against {champion.who}: {'passed' if judged.passed else 'refused'}. {done['outcome']}")


def _champion(registry: Registry | None, alias: str | None, challenger: str, reference: dict[str, Scores]) -> Champion:
    """Whom the challenger has to beat, with the scores kept at its registration; the reference where there is none.

    A challenger that is the champion already is held against whom it was judged against when it became that: so a
    promotion that was cut off after the alias moved decides the same again.

    Args:
        alias: number behind the alias champion.
        challenger: hash of the encoder.
        reference: benchmark -> scores of the untouched encoder.
    """
    number = alias
    if registry and number and (own := registry.version(number)).tags.get("encoder_sha256") == challenger:
        number = own.tags.get(JUDGED_AGAINST) or None
    if registry is None or number is None:
        return Champion(who="the reference encoder", version=None, scores=reference, text_sha256="")
    if not registry.exists(number):
        return Champion(who=f"version {number}, which was deleted", version=number, scores={}, text_sha256="")
    version = registry.version(number)
    sha256 = version.tags.get("encoder_sha256")
    who, kept = f"version {number}, the champion", {}
    with tempfile.TemporaryDirectory() as folder:
        if fetched := registry.fetch_scores(version, Path(folder)):
            try:
                kept = {benchmark: roles["tuned"] for benchmark, roles in collect_scores([fetched]).items()}
            except UserError:  # of an older form, or edited: as good as none
                who += ", whose scores cannot be read any more: evaluate and promote it again"
    its = {benchmark: scores for benchmark, scores in kept.items() if scores.encoder_sha256 == sha256}
    return Champion(who=who, version=number, scores=its, text_sha256=version.tags.get("text_sha256", ""))


def _looks(
    registry: Registry | None,
    champion: Champion,
    challenger: str,
    pairs: list[tuple[Scores, Scores]],
    rules: Sequence[Rule],
) -> int:
    """How many encoders were judged against this champion on these data, the challenger among them.

    One that was judged so before keeps its number, so to judge it again is no new look; and one whose version was
    deleted still counts, for its outcome was seen. Without a registry nothing is known of others, and it is the first.
    """
    if registry is None:
        return 1
    ruled = [rule.benchmark for rule in rules]
    data = [(f"data_sha256.{after.benchmark}", after.data_sha256) for _, after in pairs if after.benchmark in ruled]
    seen = {
        tags["encoder_sha256"]: tags.get(LOOK, "")
        for tags in registry.judged()
        if tags.get(JUDGED_AGAINST, "") == (champion.version or "")
        and any(tags.get(key) == sha256 for key, sha256 in data)
    }
    own = seen.pop(challenger, "")
    return int(own) if own.isdecimal() and int(own) else len(seen) + 1


def _objections(champion: Champion, text_sha256: str) -> tuple[str, ...]:
    """What holds against a challenger whatever it scores: whoever keeps text embeddings keeps the champion's."""
    if champion.text_sha256 in ("", text_sha256):
        return ()
    return (
        f"Its text tower ({text_sha256[:12]}) is not that of {champion.who} ({champion.text_sha256[:12]}): text "
        "embeddings that are kept would no longer fit; only a person may make it champion.",
    )


def _write_page(report: Path, decision: Path, judged: Decision, champion: Champion, outcome: str) -> None:
    """The report's page with the verdict on it, beside the decision."""
    page = decided(read_text(report / PAGE), judged, who=champion.who, outcome=outcome)
    (decision / PAGE).write_text(page, encoding="utf-8")


def _gather(folder: Path, pairs: list[tuple[Scores, Scores]], encoder: Path, report: Path, decision: Path) -> Path:
    """Bring together what a later challenger, and a reader, need to know about this encoder."""
    for pair in pairs:
        for each in pair:
            each.save(folder / "scores" / each.benchmark / f"{each.role}.json")
    for path in (encoder / LINEAGE, report / "report.json", decision / PAGE, decision / DECISION):
        shutil.copy(path, folder)
    return folder


def _hashes(lineage: dict[str, Any], pairs: list[tuple[Scores, Scores]]) -> dict[str, str]:
    """What the encoder is and was made from, for programs: tags of the model behind the version."""
    hashes = {key: str(lineage[key]) for key in ("seed", "encoder_sha256", "text_sha256")}
    hashes |= {f"made_from.{name}": str(sha256) for name, sha256 in lineage["parents"].items()}
    return hashes | {f"data_sha256.{tuned.benchmark}": tuned.data_sha256 for _, tuned in pairs}


def _register(registry: Registry, encoder: Path, shown: dict[str, str], kept: dict[str, str], run_id: str) -> Version:
    """The version that holds this encoder; it is made where there is none."""
    if version := registry.find(kept["encoder_sha256"]):
        registry.tag(version, shown, kept)
        return version
    return registry.register(encoder, shown, kept, run_id)


def _move_aliases(registry: Registry, params: Promote, version: Version, alias: str | None, judged: Decision) -> str:
    """Move the aliases, and say in words how they stand: as they do after a second call, too.

    Args:
        version: the challenger's.
        alias: number behind the alias champion when the challenger was judged.
    """
    number = version.number
    registry.set_alias("challenger", number)
    done = f"{registry.name} version {number} is the challenger"
    champion = registry.aliases().get("champion")
    if champion == number:
        return f"{done}, and is the champion now."
    if not judged.passed:
        return f"{done}; the gate keeps the alias champion where it is."
    if reason := version.tags.get(ROLLED_BACK):
        return f"{done}; it was rolled back ({reason}), so only a person makes it champion again."
    if params.champion == "manual":
        return f"{done}; whether it becomes champion is for a person to decide (promote.champion is manual)."
    if champion != alias:
        raise UserError(f"{done}, but the alias champion was moved meanwhile; run `un2clip promote` again")
    registry.set_alias("champion", number)
    return f"{done}, and is the champion now."
