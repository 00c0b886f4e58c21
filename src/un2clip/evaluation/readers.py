"""Read a benchmark's data, from files and tars. Whatever cannot be read is an error that names it.

Nothing is skipped, as `ingest` does, because a benchmark with fewer images is another benchmark.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from un2clip.config import read_yaml
from un2clip.datasets.images import decode
from un2clip.datasets.tars import IMAGE_EXTENSIONS, DamagedTar, Group, Keys, Rejected, groups, scattered_keys
from un2clip.errors import UserError, cause
from un2clip.files.texts import decode as decode_text
from un2clip.files.texts import read_text
from un2clip.hashes import file_sha256, files_below, folder_sha256

if TYPE_CHECKING:  # `shapes` writes what is read here, and has no tensors
    from torch import Tensor


def data_sha256(folder: Path) -> str:
    """Hash of all files below a folder but hidden ones, in order of name: which data a score belongs to."""
    if not folder.is_dir():
        raise UserError(f"no benchmark data at {folder}; the laptop world's is made by `un2clip shapes`")
    return folder_sha256(folder)


def locked_revision(folder: Path, file: str) -> str:
    """The commit that `un2clip fetch` locked beside the folder, if `file` in it is still what was locked; else "".

    Raises:
        UserError: FOLDER.lock.yaml is no lock.
    """
    path = folder.with_name(f"{folder.name}.lock.yaml")
    if not path.is_file():
        return ""
    lock = read_yaml(path)
    if not isinstance(lock.get("sha256"), dict) or not isinstance(lock.get("revision"), str):
        raise UserError(f"{path} is no lock; delete it, and `un2clip fetch` writes it anew")
    revision: str = lock["revision"]
    return revision if lock["sha256"].get(file) == file_sha256(folder / file) else ""


def read_image(source: Path | bytes, name: str) -> Image.Image:
    """Decode a JPEG, PNG or WebP to RGB, as `decode` does.

    Raises:
        UserError: it is absent, or no such image, or broken; the message begins with `name`.
    """
    try:
        return decode(source)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
        raise UserError(f"{name} is not a readable image: {cause(error)}") from None


@dataclass(frozen=True)
class Picture:
    """An image that is decoded where it is wanted: of processes that share images each reads all, and decodes its own.

    Attributes:
        source: a file, or the content of one.
        name: for a message.
    """

    source: Path | bytes
    name: str

    def read(self) -> Image.Image:
        """Decode it; raises what `read_image` raises."""
        return read_image(self.source, self.name)


def read_pixels(preprocess: "Callable[[Image.Image], Tensor]", pictures: Iterable[Picture]) -> "Tensor":
    """Pictures as an encoder reads them, (B, 3, H, W)."""
    import torch

    return torch.stack([preprocess(picture.read()) for picture in pictures])


def find_tars(folder: Path) -> list[Path]:
    """The tars of a benchmark, in order of name: clip-benchmark's test/*.tar, or else *.tar.

    Raises:
        UserError: test/nshards.txt tells another number of tars than there are.
    """
    tars = sorted((folder / "test").glob("[!.]*.tar")) or sorted(folder.glob("[!.]*.tar"))
    count = folder / "test" / "nshards.txt"
    if tars and count.is_file() and (said := read_text(count).strip()) != str(len(tars)):
        raise UserError(f"{folder}/test has {len(tars)} tars, but its nshards.txt says {cause(repr(said))}")
    return tars


def read_pictures(folder: Path) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every picture of a folder: of the samples of its tars, or else of the image files below it.

    Raises:
        UserError: there is none, or a tar cannot be read.
    """
    if tars := find_tars(folder):
        yield from ((key, picture) for key, picture, _ in read_tars(tars, None))
        return
    found = [path for path in files_below(folder) if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS]
    if not found:
        raise UserError(f"{folder} holds no tars, and no images ({', '.join(IMAGE_EXTENSIONS)})")
    for path in found:
        name = path.relative_to(folder).as_posix()
        yield name, Picture(path, f"{folder}: {name}")


def dataset_type(folder: Path) -> str:
    """What clip-benchmark's dataset_type.txt says: retrieval, multilabel; "" where there is none."""
    path = folder / "dataset_type.txt"
    return read_text(path).strip() if path.is_file() else ""


def read_tars(tars: list[Path], extension: str | None) -> Iterator[tuple[str, Picture, str]]:
    """Key, picture and text of every sample, in the order of the tars; one sample in memory at a time.

    Keys are unique: one that an earlier tar has too stands behind the name of its tar.

    Args:
        tars: in webdataset form.
        extension: of the member that is the text, such as "cls"; None where only the image counts.

    Raises:
        UserError: a tar is damaged, or a sample lacks its image or its text, is unsafe, or occurs twice in its tar.
    """
    keys = Keys()
    for tar in tars:
        keys.open(tar.name)
        try:
            for group in groups(tar, max_bytes=tar.stat().st_size):
                name = f"{tar}: sample {group.key}"
                try:
                    key = keys.claim(group.key)
                except Rejected:
                    raise UserError(f"{name} occurs twice{_apart(group, tar)}") from None
                if extension and len(group.members) < 2 and (hint := _apart(group, tar)):
                    raise UserError(f"{name} is not whole{hint}")
                yield key, *_image_and_text(group, extension, name)
        except DamagedTar as error:
            raise UserError(f"{tar} is damaged, get it again: {error}") from None


def _apart(group: Group, tar: Path) -> str:
    return ": its members stand apart, make the tar with `tar --sort=name`" * (group.key in scattered_keys(tar))


def _image_and_text(group: Group, extension: str | None, name: str) -> tuple[Picture, str]:
    if group.fault is not None:
        raise UserError(f"{name} is refused: {group.fault}")
    if len(group.image_extensions) != 1 or (extension and extension not in group.members):
        wanted = f"one image and .{extension}" if extension else "one image"
        raise UserError(f"{name} must have {wanted}; it has {', '.join(group.members)}")
    text = decode_text(group.members[extension], f"{name}: its .{extension}") if extension else ""
    return Picture(group.members[group.image_extensions[0]], name), text
