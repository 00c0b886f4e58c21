"""What draws an image from a condition: unCLIP, text-to-image, flow, pixels; read, written and assembled."""

from un2clip.decoders.decoder import Cond, Decoder, NoiseConfig, NoiseSample
from un2clip.decoders.folder import Options, load_generator, save_generator
from un2clip.decoders.unclip import Unclip

__all__ = ["Cond", "Decoder", "NoiseConfig", "NoiseSample", "Options", "Unclip", "load_generator", "save_generator"]
