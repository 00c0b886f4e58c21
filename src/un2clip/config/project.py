"""A folder to work in, anywhere: the numbers, the graph and the overlays, as the repository's root has them."""

import shutil
import tomllib
from pathlib import Path

from un2clip.errors import UserError
from un2clip.files.texts import read_text

#: In a wheel setup.py puts them here; an installation from a checkout has the checkout.
PACKAGED = Path(__file__).with_name("project")
CHECKOUT = Path(__file__).parents[3]
#: DVC's settings; without Git it must be told so.
DVC = "[core]\n    analytics = false\n"
WITHOUT_GIT = "    no_scm = true\n"


def sources() -> list[Path]:
    """The files and folders that a project consists of."""
    if PACKAGED.is_dir():
        return sorted(PACKAGED.iterdir())
    project = tomllib.loads(read_text(CHECKOUT / "pyproject.toml"))
    return [CHECKOUT / name for name in project["tool"]["un2clip"]["project"]]


def make_project(folder: Path) -> list[str]:
    """Write a project into a folder, which is made; what else is in it stays. Names of what was written.

    Raises:
        UserError: something of that name is there already; nothing is written then.
    """
    made = sources()
    if there := [each.name for each in made if (folder / each.name).exists()]:
        raise UserError(f"{folder} has a {there[0]} already; name another folder, for nothing is overwritten")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        if each.is_dir():
            shutil.copytree(each, folder / each.name)
        else:
            shutil.copy(each, folder / each.name)
    if not (config := folder / ".dvc/config").exists():
        config.parent.mkdir(exist_ok=True)
        config.write_text(DVC if (folder / ".git").exists() else DVC + WITHOUT_GIT)
        (config.parent / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")  # as `dvc init` does
    return [each.name for each in made]
