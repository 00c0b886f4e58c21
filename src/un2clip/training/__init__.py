"""The loop, and how it is configured, shown, kept and distributed."""
