"""Do memory and time a sample of `ingest` grow with the number of samples? Tiny pictures, so that only its books count.

    python -m timings.ingest_memory                     10^4 and 10^5 samples
    python -m timings.ingest_memory 10000 1000000       a quarter of an hour to an hour
    python -m timings.ingest_memory --duplicates near
    python -m timings.ingest_memory --smallest          a hundred and two hundred: only that it runs

Each number of samples is a process of its own; 10,000 samples a tar, random pictures of 8 x 8 px that all differ.
Prints a row for a table: samples, microseconds a sample of processor time and of the clock, peak memory in MiB.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from un2clip.config import build, read_params
from un2clip.datasets.shards import EncodedSample, ShardWriter
from un2clip.stages.ingest import Ingest, ingest

SAMPLES_PER_TAR = 10_000
COLUMNS = ("samples", "us of processor a sample", "us a sample", "peak MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--duplicates", choices=("keep", "exact", "near"), default="exact")
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    parser.add_argument("--folder", type=Path, help="of one run, whose row is printed; for this script itself")
    args = parser.parse_args()
    if args.folder:
        print(measure(args.samples[0], args.duplicates, args.folder))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for samples in [100, 200] if args.smallest else args.samples:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder) / "images", samples)
            words = [str(samples), "--duplicates", args.duplicates, "--folder", folder]
            command = [sys.executable, "-m", "timings.ingest_memory", *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(done.stdout.splitlines()[-1], flush=True)


def fill(images: Path, samples: int) -> None:
    """Tars of different pictures, each with a caption of its own."""
    rng = np.random.default_rng(0)

    def encoded() -> Iterator[EncodedSample]:
        for number in range(samples):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            caption = f"picture {number} of many"
            yield EncodedSample(
                key=f"{number:09d}", image=file.getvalue(), extension="png", caption=caption, metadata=None
            )

    with ShardWriter(images, SAMPLES_PER_TAR) as writer:
        for sample in encoded():
            writer.add(sample)
        writer.close()


def measure(samples: int, duplicates: str, folder: Path) -> str:
    """A row of the table."""
    numbers = read_params(Path("params.yaml"))["ingest"] | {"duplicates": duplicates, "processes": 1}
    began, before = time.monotonic(), time.process_time()
    ingest(build(Ingest, numbers, "ingest"), images=folder / "images", shards=folder / "shards")
    spent, took = time.process_time() - before, time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {samples:,} | {spent / samples * 1e6:.0f} | {took / samples * 1e6:.0f} | {peak:.0f} |"


if __name__ == "__main__":
    main()
