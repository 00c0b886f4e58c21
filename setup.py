"""What pyproject.toml cannot say: files of the repository's root, which `un2clip init` writes, go into the wheel."""

import tomllib
from pathlib import Path
from shutil import copy, copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class WithProject(build_py):
    """The package, and beside its code the numbers and the graph."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # `un2clip init` finds them in the repository
        to = Path(self.build_lib, "un2clip/config/project")
        to.mkdir(parents=True, exist_ok=True)
        for name in tomllib.loads(Path("pyproject.toml").read_text())["tool"]["un2clip"]["project"]:
            if Path(name).is_dir():
                copytree(name, to / name, dirs_exist_ok=True)
            else:
                copy(name, to / name)


setup(cmdclass={"build_py": WithProject})
