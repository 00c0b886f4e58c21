"""The seeded fuzz of tests/robustness/pictures.py at a size for every day; more of it by hand."""

import pytest

from tests.robustness.pictures import KINDS, run


@pytest.mark.parametrize(("kind", "n"), [("pictures", 150), ("tars", 25), ("encoders", 6)])
def test_spoilt_inputs_end_in_a_result_or_a_sentence(kind: str, n: int) -> None:
    """No traceback, no sample lost, no picture that two readers see differently, no encoder that is not finite."""
    found = run(kind, n, seed=1)
    assert found.failures == [] and found.outcomes.total() == n
    assert len(found.outcomes) > 1, "some are read, and some are not"


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == {"pictures", "tars", "encoders"}
