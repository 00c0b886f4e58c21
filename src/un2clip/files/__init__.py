"""Files as they are read, which may be hostile, and as they are written, for others to read."""
