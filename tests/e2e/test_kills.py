"""The command behind docs/robustness.md, at its smallest size."""

import subprocess
import sys
from pathlib import Path


def test_two_kills_of_the_first_stage() -> None:
    """One at a file event, one at a time: it measures, harms, runs again, compares, and counts."""
    words = [sys.executable, "-m", "tests.robustness.kills", "--trials", "2", "--seed", "1", "--stages", "shapes"]
    ran = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| shapes | 1 | 1 | 0 | 0 | 0 |" in ran.stdout and ran.stdout.strip().endswith("0 went wrong")
