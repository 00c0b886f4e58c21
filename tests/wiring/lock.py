"""The locks, by uv: `python -m tests.wiring.lock`, or `make lock`.

- requirements.lock: what the program needs, with the extra `pipelines`; the images install it.
- requirements-dev.lock: what only the tests need besides.
- docker/sbom.lock: cyclonedx-bom, which lists an image's contents.

Each line is a version and the hashes of all its files, so any index that hands out the same files will do, and none is
named. Versions stay where they are, but for the packages of --upgrade, or all with a bare --upgrade.

With --torch-index it writes requirements-cpu.lock instead: the same versions, with torch and torchvision as that index
builds them for processors, without the CUDA libraries. Their hashes are what the index says now; keep the file.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK, DEV, CPU, SBOM = (
    ROOT / name for name in ("requirements.lock", "requirements-dev.lock", "requirements-cpu.lock", "docker/sbom.lock")
)
#: What an index of CPU builds has under a version of its own, such as 2.15.0+cpu.
BUILT = ("torch", "torchvision")
HEAD = "# {what} Exact versions and the hashes of their files (Python 3.11, Linux); made by `{by}`.\n"


def read_lock(path: Path) -> dict[str, str]:
    """Package, by its normal name -> its lines in a lock, or in the output of uv."""
    found = re.findall(r"^([\w.-]+)(==.*\n(?: .*\n)*)", path.read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): name + rest for name, rest in found}


def versions(lock: Mapping[str, str]) -> dict[str, str]:
    """Package -> its version."""
    return {name: re.split(r"==|[\s;\\]", lines, maxsplit=2)[1] for name, lines in lock.items()}


def resolve(asked: Iterable[str], pins: Mapping[str, str], words: Iterable[str] = ()) -> dict[str, str]:
    """All packages that some ask for, with hashes, at the pinned versions where there is one.

    Args:
        asked: requirements.
        pins: package -> version.
        words: further ones of `uv pip compile`.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraints, to = Path(folder, "pins.txt"), Path(folder, "to.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "-",
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "--quiet",
        ]
        command += ["--python-version", "3.11", "--constraints", str(constraints), "--output-file", str(to), *words]
        subprocess.run(command, input="\n".join(asked), text=True, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        return read_lock(to)


def requirements(*extras: str) -> list[str]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]


def write(path: Path, lock: Mapping[str, str], what: str, by: str = "make lock") -> None:
    path.write_text(HEAD.format(what=what, by=by) + "".join(lines for _, lines in sorted(lock.items())))


def main(argv: list[str] | None = None) -> int:
    """Write the locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upgrade", nargs="*", metavar="PACKAGE", help="let go of these pins, or of all")
    parser.add_argument("--torch-index", metavar="ADDRESS", help="of CPU builds: write requirements-cpu.lock")
    options = parser.parse_args(argv)
    pins = {
        name: found for path in (LOCK, DEV, SBOM) if path.is_file() for name, found in versions(read_lock(path)).items()
    }
    if options.torch_index:
        pins |= {name: f"{pins[name]}+cpu" for name in BUILT}
        words = [
            "--extra-index-url",
            options.torch_index,
            "--index-strategy",
            "unsafe-best-match",
            "--no-emit-index-url",
        ]
        lock = resolve([*requirements("pipelines"), "setuptools"], pins, words)
        write(CPU, lock, "For images without CUDA.", "make images TORCH_INDEX=...")
        return 0
    if options.upgrade is not None:
        pins = {name: found for name, found in pins.items() if options.upgrade and name not in options.upgrade}
    program = resolve([*requirements("pipelines"), "setuptools"], pins)
    everything = resolve([*requirements("pipelines", "dev"), "setuptools"], pins | versions(program))
    write(LOCK, program, "What the program needs.")
    write(
        DEV, {name: lines for name, lines in everything.items() if name not in program}, "What the tests need besides."
    )
    write(SBOM, resolve(["cyclonedx-bom"], pins), "What lists an image's contents.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
