"""Where the generator comes from: a directory, a pinned hub id or the registry; verified, then copied or assembled."""

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderDC

from un2clip.decoders.assemble import from_text_to_image
from un2clip.decoders.folder import (
    TEXT_TO_IMAGE,
    Options,
    copy_generator,
    load_generator,
    load_text_to_image,
    read_layout,
)
from un2clip.decoders.kinds import save_decoder
from un2clip.decoders.parts import load_part, named
from un2clip.decoders.pixels import Pixels
from un2clip.files.outputs import permit
from un2clip.models.clip import Clip
from un2clip.models.registry import obtain_model
from un2clip.sources.hub import Source
from un2clip.sources.packaged import located

TOY, NONE = "toy", "none"
#: What it cannot do without, in the layout of an unCLIP or of text-to-image.
FILES = (
    "model_index.json", "scheduler/*.json", "tokenizer/*.json", "text_encoder/*.safetensors", "unet/*.safetensors",
    "vae/*.safetensors",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GeneratorSource:
    """`backbones.generator` or `backbones.text_to_image` of params.yaml: where it comes from, and how it is used.

    Attributes:
        weights: laptop-pair, toy, or a Source's location: a directory in StableUnCLIPImg2ImgPipeline's layout, or in
            StableDiffusionPipeline's, from which an untrained unCLIP is assembled. none: no method that is run trains
            through one.
        revision, sha256: of a hub id; see Source.
        prompt, normalise, image_px: see Options.
    """

    weights: str
    revision: str
    sha256: dict[str, str]
    prompt: str
    normalise: bool
    image_px: int

    def __post_init__(self) -> None:
        if self.weights == TOY and self.image_px != 0:
            raise ValueError(f"image_px must be 0 with toy weights, which draw at clip.image_px; got {self.image_px}")
        self.source, self.options  # noqa: B018  their own checks

    @property
    def source(self) -> Source:
        return Source(location=located(self.weights, "unclip"), revision=self.revision, sha256=self.sha256)

    @property
    def options(self) -> Options:
        return Options(prompt=self.prompt, normalise=self.normalise, image_px=self.image_px)


@dataclass(frozen=True, kw_only=True)
class PixelsSource:
    """`backbones.pixels` of params.yaml: the autoencoder whose decoder draws pixels.

    Attributes:
        weights: none, or a Source's location: a folder of diffusers' AutoencoderDC.
        revision, sha256: of a hub id; see Source.
    """

    weights: str
    revision: str
    sha256: dict[str, str]

    def __post_init__(self) -> None:
        _ = self.source  # its own checks

    @property
    def source(self) -> Source:
        return Source(location=self.weights, revision=self.revision, sha256=self.sha256)


def fetch_pixels(params: PixelsSource, image_px: int, folder: Path) -> None:
    """Write the decoder half of the autoencoder that `params` names.

    Raises:
        UserError: it is absent, not what its hash says, or no AutoencoderDC.
    """
    found = obtain_model(params.source, files=("config.json", "*.safetensors"), name="backbones.pixels")
    with named(found):
        autoencoder = load_part(AutoencoderDC, found.parent, found.name)
    save_decoder("pixels", Pixels(autoencoder, image_px), folder, folder.parent)


def fetch_text_to_image(params: GeneratorSource, folder: Path) -> None:
    """Write the text-to-image generator that `params` names: a copy.

    Raises:
        UserError: it is absent, not what its hash says, incomplete, or no text-to-image generator.
    """
    found = obtain_model(params.source, files=FILES, name="backbones.text_to_image")
    folder.mkdir(parents=True, exist_ok=True)
    copy_generator(found, folder)
    params.options.save(folder)
    load_text_to_image(folder)


def fetch_generator(params: GeneratorSource, clip: Clip, folder: Path) -> None:
    """Write the generator that `params` names: a copy of an unCLIP, or one assembled from text-to-image parts.

    Raises:
        UserError: it is absent, not what its hash says, incomplete, or made for embeddings of another width.
    """
    found = obtain_model(params.source, files=FILES, name="backbones.generator")
    folder.mkdir(parents=True, exist_ok=True)
    if read_layout(found) == TEXT_TO_IMAGE:
        from_text_to_image(found, clip).save_pretrained(folder, safe_serialization=True)
        permit(folder)
    else:
        copy_generator(found, folder)
    params.options.save(folder)
    load_generator(folder).check_fits(clip.embed_dim)
