"""A CLIP: read, written, converted, exported, registered."""
