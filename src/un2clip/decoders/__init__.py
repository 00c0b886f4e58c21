"""What draws an image from a condition: an unCLIP, read, written, assembled and sampled from."""

from un2clip.decoders.folder import Options, load_generator, save_generator
from un2clip.decoders.unclip import Generator

__all__ = ["Generator", "Options", "load_generator", "save_generator"]
