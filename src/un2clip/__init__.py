"""un2clip: make a CLIP image encoder see detail that it misses, and prove it (arXiv 2505.24517)."""

__version__ = "0.1.0"
