"""Publish a registered encoder: a folder that strangers can load, read and check, and its way to the hub.

The folder is the dry run: only `push` asks the network, and a keyless signature.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from un2clip.config import read_record
from un2clip.datasets.shards import INDEX, digest
from un2clip.errors import UserError
from un2clip.evidence.lineage import DECISION, LINEAGE
from un2clip.evidence.report import Report, read_report
from un2clip.evidence.summary import Decided
from un2clip.evidence.verdict import as_markdown
from un2clip.files.outputs import replaced, write_json
from un2clip.models.clip import load_clip
from un2clip.models.exporting import check_free, check_same, load_hugging_face, write_export
from un2clip.models.publishing.card import Contents, card, sentences
from un2clip.models.publishing.croissant import croissant
from un2clip.models.publishing.hub import named_datasets, push, write_evals
from un2clip.models.publishing.layout import (
    CARD,
    CROISSANT,
    CUSTODY,
    EVIDENCE,
    SUBFOLDER,
    Custody,
    list_files,
    read_custody,
)
from un2clip.models.publishing.signing import sign
from un2clip.models.registry import EVIDENCE as EVIDENCE_RUN
from un2clip.models.registry import Registry, Version
from un2clip.tracking import store


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the one who publishes says.

    Attributes:
        push: ORG/NAME on the hub; "" for the folder alone.
        public: whether a repository that is made is for everybody.
        shards: folder of the training data's shards.
        licence: of the weights, an id of the hub's such as mit.
        data_licence: of the training data, in words.
        datasets: BENCHMARK=ORG/SET, with :TASK and @COMMIT if wanted: which set of the hub a benchmark's data are.
        sign_key: private key in PEM; None for none.
        sign_keyless: whether to sign by Sigstore.
    """

    push: str = ""
    public: bool = False
    shards: Path = Path("data/shards")
    licence: str = "other"
    data_licence: str = "not stated"
    datasets: Sequence[str] = ()
    sign_key: Path | None = None
    sign_keyless: bool = False

    @property
    def signed(self) -> str:
        return "key" if self.sign_key else "keyless" if self.sign_keyless else "no"


def publish(registered_model: str, alias: str, to: Path, wishes: Wishes) -> None:
    """Write the folder, and push it where that is wished.

    A folder that holds this very version already is pushed as it is: so what was looked at is what goes out.

    Args:
        registered_model: name in the registry.
        alias: champion, challenger, or one that was set by hand.
        to: a folder that is empty, does not exist, or was published before.
        wishes: the rest.

    Raises:
        UserError: there is no such version or no evidence for it, something in it does not fit, or the hub refuses.
    """
    registry = Registry(registered_model)
    with store.as_user_error():
        version = registry.version(registry.resolve_alias(alias))
    if wishes.push and (to / CUSTODY).is_file():
        kept = read_custody(to)
        if kept.encoder_sha256 != version.tags.get("encoder_sha256") or kept.files != list_files(to):
            raise UserError(f"{to} is not version {version.number} as it was published; name a new folder")
    else:
        check_free(to)
        with replaced(to) as folder:
            lacking = write_folder(registry, version, folder, wishes)
        print(f"{registered_model} version {version.number} ({alias}) is in {to}: read {to / CARD} first")
        for sentence in lacking:
            print(f"  {sentence}")
    if wishes.push:
        print(f"pushed: {push(to, wishes.push, private=not wishes.public)}")


def write_folder(registry: Registry, version: Version, folder: Path, wishes: Wishes) -> list[str]:
    """Write all files of a version into an empty folder; return sentences on what it lacks."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        custody = gather(registry, version, folder, Path(scratch))
        subfolder, hugging_face = _add_hugging_face(folder, Path(scratch, "hf"))
    custody = dataclasses.replace(custody, signed=wishes.signed)
    report = read_report(folder / EVIDENCE / "report.json")
    evaluated, without = write_evals(report.benchmarks, folder, named_datasets(wishes.datasets))
    made = Contents(
        name=wishes.push or registry.name,
        custody=custody,
        report=report,
        verdict=_verdict(folder, report),
        subfolder=subfolder,
        hugging_face=hugging_face,
        licence=wishes.licence,
        data_licence=wishes.data_licence,
        croissant=_add_croissant(folder, report, wishes),
        evaluated=evaluated,
    )
    (folder / CARD).write_text(card(made))
    write_json(folder / CUSTODY, dataclasses.asdict(custody) | {"files": list_files(folder)})
    if wishes.signed != "no":
        sign(folder, wishes.sign_key)
    return sentences(without, made)


def gather(registry: Registry, version: Version, folder: Path, scratch: Path) -> Custody:
    """Bring a version's open_clip files, lineage and evidence together; the record's files are not known yet."""
    write_export(registry.fetch(version, _new(scratch / "version")), folder, "open_clip")
    evidence = registry.fetch_evidence(version, _new(scratch / "evidence"))
    shutil.copytree(evidence, folder / EVIDENCE)
    (folder / EVIDENCE / LINEAGE).rename(folder / LINEAGE)
    run = version.tags[EVIDENCE_RUN]
    with store.as_user_error():
        return Custody(
            model=registry.name,
            version=version.number,
            run=run,
            encoder_sha256=version.tags["encoder_sha256"],
            source_commit=store.commit_of(registry.client, run),
            trained_s=store.duration_beside(registry.client, run, "finetune"),
            signed="no",
            files={},
        )


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _add_hugging_face(folder: Path, scratch: Path) -> tuple[str, str]:
    """Add the files that transformers loads, beside open_clip's, or in a subfolder where one would replace another.

    Returns:
        The subfolder, "" for none; and why there are no such files, "" where there are.
    """
    try:
        write_export(folder, scratch, "hf")
    except UserError as error:
        return "", str(error)
    taken = any((folder / path.name).exists() and _differ(path, folder) for path in scratch.iterdir())
    subfolder = SUBFOLDER if taken else ""  # of SigLIP: both have a tokenizer.json, each of its own
    shutil.copytree(scratch, folder / subfolder, dirs_exist_ok=True)
    # and open_clip's loader is not led astray
    check_same(load_clip(folder), load_hugging_face(folder / subfolder), "transformers")
    return subfolder, ""


def _differ(path: Path, folder: Path) -> bool:
    return path.read_bytes() != (folder / path.name).read_bytes()


def _add_croissant(folder: Path, report: Report, wishes: Wishes) -> bool:
    """Add the metadata of the training data, if these are the shards that the lineage names."""
    if not (wishes.shards / INDEX).is_file() or digest(wishes.shards) != report.lineage.parents.get("shards"):
        return False
    content = croissant(wishes.shards, wishes.data_licence)
    if content is not None:
        (folder / CROISSANT).write_text(json.dumps(content, indent=1, default=str) + "\n")
    return content is not None


def _verdict(folder: Path, report: Report) -> str:
    path = folder / EVIDENCE / DECISION
    if not path.is_file():  # of a version that was registered before it was kept
        return ""
    decided = read_record(Decided, path, "promote")
    return as_markdown(decided.decision, who=decided.who, confidence=report.confidence)
