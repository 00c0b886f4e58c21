"""Walk the chain of custody of a published folder, or of a registered version, and name the first link that fails."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from un2clip.config import read_record
from un2clip.errors import UserError
from un2clip.evidence.lineage import DECISION, LINEAGE, read_lineage, tuned_pairs
from un2clip.evidence.report import compare_scores, read_report
from un2clip.evidence.summary import Decided
from un2clip.models.clip import encoder_sha256, load_clip, text_sha256
from un2clip.models.publishing import gather
from un2clip.models.publishing.layout import CUSTODY, EVIDENCE, SIGNATURE, Custody, list_files, read_custody
from un2clip.models.publishing.signing import Trust, check
from un2clip.models.registry import Registry
from un2clip.tracking import store

HOLDS, UNCHECKED = "holds", "not checked"


@dataclass(frozen=True, kw_only=True)
class Link:
    """One link: whether it holds or was not checked, and what was found."""

    name: str
    state: str
    found: str


def verify(place: str, registered_model: str, trust: Trust) -> list[Link]:
    """Check every link in order: signature, files, weights, lineage, scores, source.

    Args:
        place: a published folder, or else an alias of the registered model.
        registered_model: name in the registry.
        trust: by whom the signature must be; it must be there then.

    Raises:
        UserError: a link does not hold; names the first, and those before it are printed.
    """
    if Path(place).is_dir():
        return _walk(Path(place), read_custody(Path(place)), trust, published=True)
    registry = Registry(registered_model)
    with store.as_user_error():
        version = registry.version(registry.resolve_alias(place))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "folder")
        custody = gather(registry, version, folder, Path(scratch))
        links = _walk(folder, custody, trust, published=False)
        _check_measured(registry, folder)
    return links


def _check_measured(registry: Registry, folder: Path) -> None:
    """The runs that measured know these outcomes."""
    try:
        with store.as_user_error():
            for pair in tuned_pairs([folder / EVIDENCE / "scores"], read_lineage(folder)):
                for each in pair:
                    store.check_measured(registry.client, each)
    except UserError as error:
        raise UserError(f"scores does not hold: {error}") from None


def _walk(folder: Path, custody: Custody, trust: Trust, *, published: bool) -> list[Link]:
    links = []
    for name, check_link in _links(folder, custody, trust, published):
        try:
            state, found = check_link()
        except UserError as error:
            raise UserError(f"{name} does not hold: {error}") from None
        links.append(Link(name=name, state=state, found=found))
        print(f"{name:<10} {state:<12} {found}", flush=True)
    return links


def _links(
    folder: Path, custody: Custody, trust: Trust, published: bool
) -> Iterator[tuple[str, Callable[[], tuple[str, str]]]]:
    yield "signature", lambda: _signature(folder, trust, published)
    if published:
        yield "files", lambda: _files(folder, custody)
    yield "weights", lambda: _weights(folder, custody)
    yield "lineage", lambda: _lineage(folder, custody)
    yield "scores", lambda: _scores(folder)
    yield "source", lambda: _source(custody)


def _signature(folder: Path, trust: Trust, published: bool) -> tuple[str, str]:
    if not published and not trust:
        return UNCHECKED, "a registered version has none; the registry vouches for it"
    if not (folder / SIGNATURE).is_file():
        if trust:
            raise UserError(f"there is no {SIGNATURE}")
        return UNCHECKED, "it is not signed, so the files vouch for each other and nobody for them"
    if not trust:
        return UNCHECKED, f"there is a {SIGNATURE}; --key, or --identity and --issuer, say by whom it must be"
    check(folder, trust)
    return HOLDS, f"by the key of {trust.key}" if trust.key else f"by {trust.identity}, as {trust.issuer} says"


def _files(folder: Path, custody: Custody) -> tuple[str, str]:
    found = list_files(folder)
    for what, names in (
        ("missing", sorted(custody.files.keys() - found.keys())),
        ("not listed", sorted(found.keys() - custody.files.keys())),
        ("another one", sorted(name for name in found if found[name] != custody.files.get(name))),
    ):
        if names:
            more = f", and {len(names) - 1} more" if names[1:] else ""
            raise UserError(f"{names[0]} is {what} by {CUSTODY}{more}")
    return HOLDS, f"{len(found)} files are those of {CUSTODY}"


def _weights(folder: Path, custody: Custody) -> tuple[str, str]:
    found = encoder_sha256(folder)
    if found != custody.encoder_sha256:
        raise UserError(f"the weights hash to {found[:12]}, and {custody.encoder_sha256[:12]} was registered")
    return HOLDS, f"encoder {found[:12]} is what was registered as version {custody.version} of {custody.model}"


def _lineage(folder: Path, custody: Custody) -> tuple[str, str]:
    lineage = read_lineage(folder)
    if lineage["encoder_sha256"] != custody.encoder_sha256:
        raise UserError(f"{LINEAGE} is of encoder {str(lineage['encoder_sha256'])[:12]}")
    if not lineage["complete"]:
        raise UserError(f"by {LINEAGE} its training failed")
    if text_sha256(load_clip(folder).model) != lineage["text_sha256"]:
        raise UserError(f"the text tower is not the one of {LINEAGE}, which no method touches")
    parents = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in lineage["parents"].items())
    return HOLDS, f"{lineage['method']}, seed {lineage['seed']}, from {parents}"


def _scores(folder: Path) -> tuple[str, str]:
    """Every number of the report follows from the items, and the decision is about this encoder."""
    lineage = read_lineage(folder)
    report = read_report(folder / EVIDENCE / "report.json")
    pairs = tuned_pairs([folder / EVIDENCE / "scores"], lineage)
    said = {each.benchmark: each.whole for each in report.benchmarks}
    for reference, tuned in pairs:
        wanted = compare_scores(
            reference, tuned, confidence=report.confidence, resamples=report.resamples, seed=report.seed,
            power=report.power,
        )  # fmt: skip
        whole = said.pop(tuned.benchmark, None)
        if whole is None or (whole.reference, whole.tuned, whole.difference) != (
            wanted.whole.reference, wanted.whole.tuned, wanted.whole.difference,
        ):  # fmt: skip
            raise UserError(f"the report's {tuned.benchmark} does not follow from its items")
    if said:
        raise UserError(f"the report has {min(said)}, and no outcome of it is there")
    path = folder / EVIDENCE / DECISION
    if path.is_file():
        judged = read_record(Decided, path, "promote").challenger.get("encoder_sha256")
        if judged != lineage["encoder_sha256"]:
            raise UserError(f"{DECISION} is about encoder {str(judged)[:12]}")
    return HOLDS, f"{len(pairs)} benchmarks: the report follows from {sum(tuned.n for _, tuned in pairs)} outcomes"


def _source(custody: Custody) -> tuple[str, str]:
    """Whether the checkout here has the commit."""
    if not custody.source_commit:
        return UNCHECKED, "no commit is known: it was judged outside of a checkout"
    try:
        inside = subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True, check=False).returncode == 0
    except OSError:
        inside = False
    if not inside:
        return UNCHECKED, f"commit {custody.source_commit[:12]}; run it in a checkout of the code to look for that"
    known = ["git", "cat-file", "-e", f"{custody.source_commit}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        raise UserError(f"commit {custody.source_commit[:12]} is not in this checkout; fetch it, or ask where it is")
    return HOLDS, f"commit {custody.source_commit[:12]} is in this checkout"
