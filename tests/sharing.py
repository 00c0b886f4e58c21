"""A benchmark whose batches are measured in seven shares, against the same by one process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from un2clip.evaluation.benchmarks import BenchmarkResult
from un2clip.evaluation.spreading import Kept, ShareMeasured, Spread, Unmeasured, alone, close


def shared(run: Callable[[Spread], BenchmarkResult], folder: Path, shares: int = 7) -> None:
    """Fail unless seven shares, the last first, give the same result as one process that keeps nothing."""
    loops = 0
    while True:
        try:
            found = run(Kept(folder=folder, of=0))
            break
        except Unmeasured as loop:
            for share in reversed(range(shares)):
                with pytest.raises(ShareMeasured):
                    run(Kept(folder=folder, share=share, of=shares))
            close(*loop.args)
            loops += 1
    assert loops and found == run(alone) == run(Kept(folder=folder / "once"))
