"""The classes' names.

Names alone move mIoU by several points (a "dining table" or a "table"? "person", or also "man" and "crowd"?), so
they are part of the protocol and hashed into its line in every scores file.
"""

import hashlib
from importlib.resources import files
from pathlib import Path

from un2clip.errors import UserError
from un2clip.files.texts import read_lines

#: The names of each class; the first one is what the class is called.
Names = tuple[tuple[str, ...], ...]


def packaged_names(file: str) -> Names:
    """The official names of a public data set, from the package: voc, context, coco_object, ..."""
    return _parse(read_lines(files("un2clip.evaluation.dense") / "names" / f"{file}.txt"))


def read_names(path: Path) -> Names:
    """Names from a file of one class a line, in the order of the labels, further names after commas.

    Raises:
        UserError: there is no class, or two are called the same.
    """
    return check_names(_parse(read_lines(path)), path)


def check_names(names: Names, path: Path) -> Names:
    """The same names, or a UserError that names the file: none, one twice, or one with an @."""
    called = [each[0] for each in names]
    if not names:
        raise UserError(f"{path} names no class; it needs one a line, further names after commas")
    for name in called:
        if "@" in name or called.count(name) > 1:
            raise UserError(f"{path}: class {name!r} must be called so once, and without an @")
    return names


def names_sha256(names: Names) -> str:
    return hashlib.sha256("\n".join(", ".join(each) for each in names).encode()).hexdigest()


def _parse(lines: list[str]) -> Names:
    names = (tuple(name.strip() for name in line.split(",") if name.strip()) for line in lines)
    return tuple(each for each in names if each)
