"""What a published folder holds beside the encoder, and the record that binds its files together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from un2clip.config import read_record
from un2clip.hashes import file_sha256

CARD, CROISSANT, CUSTODY, SIGNATURE = "README.md", "croissant.json", "custody.json", "model.sig"
EVALS, EVIDENCE = ".eval_results", "evidence"
#: Of Hugging Face's files, where they cannot lie beside open_clip's.
SUBFOLDER = "transformers"
#: What the hub, and its client in a folder that it downloaded, put beside the files; nobody loads it.
OF_THE_HUB = (".gitattributes", ".cache")


@dataclass(frozen=True, kw_only=True)
class Custody:
    """custody.json: where the encoder comes from, and the SHA-256 of every other file but the signature.

    Attributes:
        model, version: name and number in the registry.
        run: of MLflow, which keeps the evidence.
        encoder_sha256: of the weights, as the version was registered.
        source_commit: of the code that judged and registered it; "" where it ran outside of a checkout.
        trained_s: how long the fine-tuning took; None where its run is not known.
        signed: key, keyless or no.
        files: path in the folder -> SHA-256.
    """

    model: str
    version: str
    run: str
    encoder_sha256: str
    source_commit: str
    trained_s: float | None
    signed: str
    files: dict[str, str]


def read_custody(folder: Path) -> Custody:
    """The record of a published folder; a UserError where it is absent or broken."""
    return read_record(Custody, folder / CUSTODY, "publish")


def list_files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below a folder, hidden ones too, but the record, the signature and the hub's."""
    return {name: file_sha256(folder / name) for name in sorted(_names(folder))}


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in (CUSTODY, SIGNATURE, *OF_THE_HUB):
            yield name.as_posix()
