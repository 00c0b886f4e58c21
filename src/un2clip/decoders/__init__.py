"""The decoder of the method: an unCLIP, read, written, assembled and sampled from. docs/generators.md is its page."""

from un2clip.decoders.folder import Options, load_generator, save_generator
from un2clip.decoders.unclip import Generator

__all__ = ["Generator", "Options", "load_generator", "save_generator"]
