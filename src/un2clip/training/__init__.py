"""The training loop, its numbers, progress, checkpoints and processes."""
