"""Which ceilings of pyproject.toml keep this project behind its dependencies: `python -m tests.wiring.ceilings`.

It asks the registry that pip is set to for the newest release of every package that has a ceiling, and fails where that
release is more than one minor behind a ceiling (of packages below 1.0, one release of their second number), unless
REASONS says what holds it. tests/wiring/test_ceilings.py holds what needs no network.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: Package with a ceiling that may be behind -> why it is where it is.
REASONS = {
    "kubernetes": "kfp has the same bound",
    "kfp": "the SDK of kubeflow 0.5 has the same bound, and so has kfp-kubernetes",
    "kfp-kubernetes": "it goes with kfp, release by release",
}


def ceilings() -> dict[str, Version]:
    """Package -> the lowest version that pyproject.toml excludes, of all that have such a bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    found = {}
    for requirement in map(Requirement, listed):
        for bound in requirement.specifier:
            if bound.operator == "<":
                found[requirement.name] = Version(bound.version)
    return found


def behind(ceiling: Version, newest: Version) -> bool:
    """Whether a release is more than one minor ahead of all that a ceiling allows.

    A ceiling of 4 allows every 3.x, so 4.0 is one minor ahead and 4.1 two; one of 2.4 allows 2.3, so 2.5 is two ahead.
    """
    return (newest.major, newest.minor) > (ceiling.major, ceiling.minor)


def newest(package: str) -> Version:
    """The newest release that pip can see, without regard to a ceiling."""
    words = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout
    match = re.match(rf"{re.escape(package)} \((.+)\)", said)
    assert match, said
    return Version(match[1])


def main() -> int:
    """Print a line a ceiling; status 1 where one is behind without a reason."""
    wrong = 0
    for package, ceiling in sorted(ceilings().items()):
        latest = newest(package)
        late = behind(ceiling, latest)
        reason = REASONS.get(package, "") if late else ""
        wrong += late and not reason
        state = f"behind: {reason or 'and nobody says why'}" if late else "not behind"
        print(f"{package} <{ceiling}: newest {latest}, {state}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
