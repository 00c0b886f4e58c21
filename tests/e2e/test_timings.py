"""Every script of timings/ runs at its smallest size: nothing else imports them, so nothing else sees them break."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "timings").glob("*.py") if "__main__" in path.read_text())
#: rows of each table: three benchmarks for each of two encoders; one step; three rates, an error, a step and an
#: encoder; two numbers of samples; one step
ROWS = {"evaluate": 6, "full_width_step": 1, "gpu": 6, "ingest_memory": 2, "training_step": 1}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_at_its_smallest_size(script: str) -> None:
    """It ends well and prints its table; each row has as many cells as the head."""
    command = [sys.executable, "-m", f"timings.{script}", "--smallest"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    head, line, *rows = [row.split("|") for row in done.stdout.splitlines() if row.startswith("|")]
    assert len(rows) == ROWS[script]
    assert {len(row) for row in [line, *rows]} == {len(head)}


def test_the_wheels_to_take_along_are_the_locked_ones() -> None:
    """timings/gpu.txt has the versions of requirements.lock."""
    wanted = {line for line in (ROOT / "timings/gpu.txt").read_text().splitlines() if not line.startswith("#")}
    locked = {line.split(" ")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    assert wanted and wanted <= locked
