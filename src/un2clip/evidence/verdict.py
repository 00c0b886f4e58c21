"""The gate's decision as a person reads it: on a registry's page, and on the report's."""

from html import escape

from un2clip.evidence.gate import Decision, Finding
from un2clip.evidence.report import UNDECIDED, interval, number
from un2clip.evidence.statistics import corrected
from un2clip.evidence.units import get_unit


def in_short(finding: Finding) -> str:
    """One rule in a few words, `40.0 % (25.0), +15.0 ±3.5`: score, champion's score, gain, half its interval."""
    score, before, gain, _ = _cells(finding)
    if not gain:
        return "cannot be judged"
    assert finding.gain is not None and finding.gain.low is not None and finding.gain.high is not None
    half = number((finding.gain.high - finding.gain.low) / 2, finding.unit or "")
    return f"{score} ({before}), {gain} ±{half}"


def as_markdown(judged: Decision, *, who: str, confidence: float) -> str:
    """The decision as a page: the verdict, before and after with n and interval, and the gate's sentences.

    Args:
        judged: by the gate.
        who: whom the challenger had to beat, in words.
        confidence: of the interval of a first look.
    """
    level = 100 * corrected(confidence, judged.looks)
    head = ("benchmark", "rule", "n", "before", "after", "gain", f"{level:.4g} % interval", "")
    rows = []
    for finding in judged.findings:
        score, before, gain, bounds = _cells(finding)
        n = f"{finding.gain.n} {get_unit(finding.unit or '').counts}" if finding.gain else ""
        passed = "passed" if finding.passed else "failed"
        rows.append((finding.rule.benchmark, finding.rule.kind, n, before, score, gain, bounds, passed))
    table = [head, ["---"] * len(head), *rows]
    return "\n\n".join([
        f"**{'Passed' if judged.passed else 'Refused'}**, judged against {who}.",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        "\n".join(f"* {sentence}" for sentence in judged.sentences),
    ])  # fmt: skip


def decided(page: str, judged: Decision, *, who: str, outcome: str) -> str:
    """The report's page with the verdict on it, in the place of UNDECIDED.

    Args:
        page: as `report.render` wrote it; one of an older version, which has no such place, stays as it is.
        outcome: what happened at the registry, in a sentence; empty before it did.
    """
    sentences = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in judged.sentences)
    verdict = f"The gate {'passed' if judged.passed else 'refused'} it, judged against {who}. {outcome}".strip()
    return page.replace(UNDECIDED, f"<p><strong>{escape(verdict)}</strong></p>\n<ul>\n{sentences}</ul>")


def _cells(finding: Finding) -> tuple[str, str, str, str]:
    """Score, the champion's score, gain and interval as texts; empty where the rule could not be judged."""
    if finding.gain is None or finding.unit is None or finding.champion is None or finding.challenger is None:
        return "", "", "", ""
    return (
        f"{number(finding.challenger, finding.unit)} {finding.unit}",
        number(finding.champion, finding.unit),
        number(finding.gain.mean, finding.unit, signed=True),
        interval(finding.gain, finding.unit),
    )
