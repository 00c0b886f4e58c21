"""Where weights and data come from: a local path or a hub id; what arrives is verified.

Files and servers are hostile until their hash says otherwise. A hub id is pinned by the commit and by the
SHA-256 of every file that may be opened, and only those files are fetched; `un2clip pin` prints both. The
hub's own variables count (HF_ENDPOINT, HF_HOME, HF_TOKEN); its library goes on where a connection broke.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from un2clip.errors import UserError, reason, without_password
from un2clip.hashes import file_sha256, files_below

Kind = Literal["model", "dataset"]
TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")
#: What may be fetched and opened. Torch files are read with weights_only=True, so none of it can run code.
OPENED: Mapping[Kind, tuple[str, ...]] = {
    "model": (".safetensors", ".gguf", ".json", ".txt", ".model", *TORCH_FILES),
    "dataset": (".tar", ".zip", ".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".jpg", ".jpeg", ".png"),
}  # fmt: skip
#: Under which names trainers keep the state dict beside epoch and optimizer, in the order in which they are tried.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place, and what must be found there.

    Attributes:
        location: a local file or folder | a hub id `org/name` | of a model, what models/registry.py reads besides.
        revision: of a hub id: the 40 hexadecimal digits of its commit; "" for anything else.
        sha256: path inside the source (a lone file's own name) -> hash. For a hub id this is the list of
            files that are fetched; a local source is checked where a hash is given.
    """

    location: str
    revision: str
    sha256: dict[str, str]

    def __post_init__(self) -> None:
        for path, digest in self.sha256.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"sha256 of {path} must be 64 hexadecimal digits, got {digest!r}")
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                raise ValueError(f"sha256 must name paths inside the source, got {path!r}")


def obtain(source: Source, *, kind: Kind = "model", files: Iterable[str] = (), name: str) -> Path:
    """Get a source onto this machine, verified.

    Args:
        kind: what the hub calls it; it also decides which files may be opened (OPENED).
        files: patterns (`unet/*.safetensors`); each must match at least one file of a folder.
        name: of the parameter, for messages (`backbones.encoder`).

    Returns:
        The local file, or a folder. A hub id's folder holds the pinned files and no others.

    Raises:
        UserError: it is not pinned, absent, out of reach, not a kind of file that is opened, or not what its
            hash says.
    """
    place = Path(source.location).expanduser()
    if HUB_ID.fullmatch(source.location) and (source.revision or not place.exists()):
        return _from_hub(source, kind, tuple(files), name)
    if not place.exists():
        raise UserError(
            f"{name}: there is no file or folder {source.location!r}, and it is no hub id (org/name) either"
        )
    return check_local(place, source, kind=kind, files=files, name=name)


def check_local(place: Path, source: Source, *, kind: Kind = "model", files: Iterable[str] = (), name: str) -> Path:
    """A file or folder on this machine, verified; arguments and errors as of `obtain`."""
    if place.is_file():
        check_opened([place.name], kind, name)
        if source.sha256 and place.name not in source.sha256:
            raise UserError(f"{name}.sha256 has no hash of {place.name}; it has: {', '.join(source.sha256)}")
        verify(place.parent, {path: digest for path, digest in source.sha256.items() if path == place.name}, name)
        return place
    found = [path.relative_to(place).as_posix() for path in files_below(place)]
    for pattern in files:
        matching = [path for path in found if fnmatch(path, pattern)]
        check_opened(matching, kind, name)
        if not matching:
            raise UserError(f"{name}: {place} has no file {pattern}")
    verify(place, source.sha256, name)
    return place


def check_opened(paths: Iterable[str], kind: Kind, name: str) -> None:
    """Raise a UserError at the first file that this program does not open."""
    for path in paths:
        if PurePosixPath(path).suffix.lower() not in OPENED[kind]:
            raise UserError(f"{name}: {path} is not opened here; of a {kind} only {', '.join(OPENED[kind])} are")


def verify(folder: Path, sha256: Mapping[str, str], name: str) -> None:
    """Compare files of a folder with their hashes; a UserError says which differs, what was wanted and found."""
    for path, wanted in sha256.items():
        try:
            found = file_sha256(folder / path)
        except OSError as error:
            raise UserError(f"{name}: cannot read {folder / path}: {error.strerror}") from None
        if found != wanted:
            raise UserError(
                f"{name}: {folder / path} is not what was pinned: wanted SHA-256 {wanted}, found {found}; "
                "delete it to fetch it again, or pin the hash of a file that you trust"
            )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a state dict, safetensors or torch (weights_only=True), onto the CPU; out of what trainers wrap it in, too.

    Raises:
        UserError: it is damaged, needs pickle or TorchScript, or holds no mapping of names to tensors; says what it
            holds.
    """
    check_opened([file.name], "model", "weights")
    try:
        if file.suffix.lower() == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        what = " ".join(str(error).split())
        if found := re.search(r"Unsupported (?:global: GLOBAL|class|operand)\s*(\S+)", what):
            raise UserError(
                f"cannot read {file}: beside tensors it holds a {found[1]}, and what may run code is not opened; "
                "save the weights alone, as safetensors or by torch.save(model.state_dict(), FILE)"
            ) from None
        hint = "" if isinstance(error, SafetensorError | OSError) else "; TorchScript and other pickles are not opened"
        raise UserError(f"cannot read {file}: {what[:160]}{hint}") from None
    return _unwrapped(content, file)


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in what a trainer saved: `{"model": {...}, "epoch": 3}`, and the like."""
    inner = content
    while isinstance(inner, dict) and not all(isinstance(value, Tensor) for value in inner.values()):
        inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), dict)), None)
    if isinstance(inner, dict) and all(isinstance(name, str) for name in inner):
        return inner
    held = f"a {type(content).__name__}"
    if isinstance(content, dict):
        held = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:6]) or "nothing"
    raise UserError(f"{file} must hold a mapping of names to tensors, or one as {', '.join(WRAPPERS)}; it holds {held}")


def pin(location: str, revision: str, kind: Kind, files: Iterable[str]) -> Source:
    """What to write so that a hub id is pinned as it is now: small files are fetched, large ones are not.

    Torch files are left out where safetensors lie beside them.

    Args:
        revision: branch, tag or commit.
        files: patterns of the files to pin; none: every file that may be opened.
    """
    if not HUB_ID.fullmatch(location):
        raise UserError(f"only a hub id (org/name) is pinned, got {location!r}")
    patterns, sha256 = tuple(files) or tuple(f"*{suffix}" for suffix in OPENED[kind]), {}
    try:
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        info = ask(location, revision=revision, files_metadata=True)
        for entry in info.siblings or ():
            if any(fnmatch(entry.rfilename, pattern) for pattern in patterns):
                sha256[entry.rfilename] = (
                    entry.lfs.sha256 if entry.lfs else _hash_of(location, info.sha, kind, entry.rfilename)
                )
    except Exception as error:
        raise UserError(
            f"cannot ask {without_password(constants.ENDPOINT)} about {location}: {reason(error)}"
        ) from None
    check_opened(sha256, kind, location)
    safe = {PurePosixPath(path).parent for path in sha256 if path.endswith(".safetensors")}
    sha256 = {
        path: digest
        for path, digest in sha256.items()
        if not (path.endswith(TORCH_FILES) and PurePosixPath(path).parent in safe)
    }
    return Source(location=location, revision=str(info.sha), sha256=sha256)


def _hash_of(location: str, revision: str | None, kind: Kind, path: str) -> str:
    return file_sha256(Path(hf_hub_download(location, path, revision=revision, repo_type=kind)))


def _from_hub(source: Source, kind: Kind, files: tuple[str, ...], name: str) -> Path:
    repo = source.location
    command = f"un2clip pin {repo}" + (" --kind dataset" if kind == "dataset" else "")
    if not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise UserError(
            f"{name}: {repo} is no local path, and as a hub id it needs revision = the 40 digits of a commit, "
            f"got {source.revision!r}; `{command}` prints what to write"
        )
    for pattern in files or ("*",):
        if not any(fnmatch(path, pattern) for path in source.sha256):
            raise UserError(f"{name}.sha256 pins no file {pattern} of {repo}; `{command}` prints what to write")
    check_opened(source.sha256, kind, name)
    fetched: dict[str, Path] = {}
    for path in source.sha256:
        try:
            fetched[path] = Path(hf_hub_download(repo, path, revision=source.revision, repo_type=kind))
        except Exception as error:  # the library's errors, the network's and the disk's share no class
            raise UserError(
                f"{name}: cannot get {path} of {repo} at {source.revision[:12]} from "
                f"{without_password(constants.ENDPOINT)}: {reason(error)}; or name a local copy"
            ) from None
        verify(fetched[path].parents[len(PurePosixPath(path).parts) - 1], {path: source.sha256[path]}, name)
    return _only(fetched, source)


def _only(fetched: Mapping[str, Path], source: Source) -> Path:
    """A folder of links to these files: the cache's own folder may hold others, which nobody has verified."""
    key = hashlib.sha256(repr((source.location, source.revision, sorted(source.sha256.items()))).encode()).hexdigest()
    folder = Path(constants.HF_HOME) / "un2clip" / f"{source.location.replace('/', '--')}-{key[:16]}"
    shutil.rmtree(folder, ignore_errors=True)
    for path, file in fetched.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(file.resolve())
    return folder
