"""Ceilings of dependencies: what needs no network. `python -m tests.wiring.ceilings` asks a registry as well."""

from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.wiring.ceilings import REASONS, behind, ceilings
from tests.wiring.lock import DEV, LOCK, read_lock, versions


@pytest.mark.parametrize(
    ("ceiling", "newest", "late"),
    [
        ("4", "3.18.0", False),
        ("4", "4.0.2", False),  # one ahead of every 3.x
        ("4", "4.1.0", True),
        ("2.4", "2.4.6", False),
        ("2.4", "2.5.0", True),
        ("0.6", "0.6.1", False),
        ("0.6", "0.7", True),
        ("31", "37.0.2", True),
    ],
)
def test_one_minor_is_allowed_and_two_are_not(ceiling: str, newest: str, late: bool) -> None:
    """By hand."""
    assert behind(Version(ceiling), Version(newest)) is late


def test_every_ceiling_below_the_next_major_has_a_reason() -> None:
    """Who excludes a minor release says why; a reason that nothing needs any more goes."""
    locked = {name: Version(found) for path in (LOCK, DEV) for name, found in versions(read_lock(path)).items()}
    held = {
        name
        for name, ceiling in ceilings().items()
        if name in locked and ceiling < Version(f"{locked[name].major + 1 if locked[name].major else 0}.0")
    }
    assert "kfp" in held
    assert held | {"kubernetes"} == set(REASONS)  # whose next major is long there, and its seventh


@pytest.mark.parametrize(("package", "holder"), [("kubernetes", "kfp"), ("kfp", "kubeflow")])
def test_a_ceiling_goes_when_its_holder_lifts_it(package: str, holder: str) -> None:
    """The installed holder has that very bound; when a newer one has another, REASONS is out of date."""
    bounds = [
        Version(bound.version)
        for each in map(Requirement, requires(holder) or [])
        if each.name == package
        for bound in each.specifier
        if bound.operator == "<"
    ]
    assert bounds == [ceilings()[package]]
