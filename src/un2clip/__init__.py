"""un2clip: make a CLIP image encoder see detail that it misses, and prove it (arXiv 2505.24517)."""

import os

# Before torch is loaded: a thread that waits for the others sleeps. By default it spins, and beside two busy processes
# two threads are then slower than one, up to fortyfold (docs/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
