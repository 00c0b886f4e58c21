"""The kinds of decoder by name: read, begun from scratch, and kept when they trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, FluxTransformer2DModel

from un2clip.config import lookup
from un2clip.decoders.decoder import Decoder
from un2clip.decoders.flow import Flow, FlowSize
from un2clip.decoders.folder import (
    CPU,
    INDEX,
    UNCLIP,
    load_generator,
    load_text_to_image,
    read_layout,
    save_generator,
)
from un2clip.decoders.parts import load_part
from un2clip.decoders.pixels import Pixels, PixelsSize
from un2clip.errors import UserError, cause
from un2clip.files.outputs import permit, save_tensors
from un2clip.files.texts import read_json
from un2clip.files.weights import read_weights

OURS = "decoder.json"  # of a decoder for which diffusers has no pipeline
WEIGHTS = "decoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Shapes of the decoders that no weights are given for."""

    flow: FlowSize
    pixels: PixelsSize


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind of decoder comes and goes.

    Attributes:
        open: folder of the backbones, shapes, side of the encoder's images -> a decoder on the CPU. What begins from
            scratch draws its weights from torch's own state.
        save: decoder, folder, the folder of the backbones that it came from.
        read: what `save` wrote, on the CPU.
    """

    open: Callable[[Path, Scratch, int], Decoder]
    save: Callable[[Any, Path, Path], None]
    read: Callable[[Path], Decoder]


def open_decoder(
    kind: str, backbones: Path, *, scratch: Scratch, image_px: int, seed: int, device: torch.device
) -> Decoder:
    """The decoder of a method, frozen.

    Args:
        kind: of KINDS. unclip and text_to_image are read from the folder of that name, pixels too where there is
            one; else pixels begin from scratch, as flow does on the latents of the unCLIP's VAE.
        image_px: side of the encoder's images, which pixels draws.
        seed: decides the weights of what begins from scratch.

    Raises:
        UserError: its weights are not there, or damaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lookup(KINDS, kind, "decoder").open(backbones, scratch, image_px).to(device)


def save_decoder(kind: str, decoder: Decoder, folder: Path, backbones: Path) -> None:
    """Write a decoder that trained; an unCLIP or a text-to-image one as the directory that it was read from."""
    KINDS[kind].save(decoder, folder, backbones)


def load_decoder(folder: Path, device: torch.device = CPU) -> Decoder:
    """Read what `save_decoder` wrote; its own files say which kind it is.

    Raises:
        UserError: it is no decoder, or damaged.
    """
    try:
        if (folder / INDEX).is_file():
            kind = "unclip" if read_layout(folder) == UNCLIP else "text_to_image"
        else:
            kind = read_description(folder)["kind"]
        return KINDS[kind].read(folder).to(device)
    except UserError:
        raise
    except Exception as error:  # a broken configuration raises nearly anything in the libraries
        raise UserError(f"cannot read the decoder in {folder}: {type(error).__name__}: {cause(error)}") from None


def write_description(folder: Path, kind: str, **content: Any) -> None:
    """Say in the folder which kind of decoder it holds, and what else is needed to build it again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).write_text(json.dumps({"kind": kind} | content, indent=1) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """What `write_description` wrote."""
    content: dict[str, Any] = read_json(folder / OURS)
    return content


def _there(backbones: Path, kind: str) -> Path:
    if not (backbones / kind).is_dir():
        raise UserError(f"{backbones} has no {kind}/, which this method trains through; see backbones.{kind}")
    return backbones / kind


def _new_flow(backbones: Path, scratch: Scratch, image_px: int) -> Flow:
    generator = load_generator(_there(backbones, "unclip"))
    return Flow.scratch(generator.vae, generator.image_px, scratch.flow)


def _save_flow(flow: Flow, folder: Path, backbones: Path) -> None:
    write_description(folder, "flow", image_px=flow.image_px)
    flow.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    flow.vae.save_pretrained(folder / "vae", safe_serialization=True)
    permit(folder)


def _read_flow(folder: Path) -> Flow:
    transformer, vae = load_part(FluxTransformer2DModel, folder, "transformer"), load_part(AutoencoderKL, folder, "vae")
    return Flow(transformer, vae, read_description(folder)["image_px"])


def _new_pixels(backbones: Path, scratch: Scratch, image_px: int) -> Pixels:
    """DC-AE's own where `backbones` has fetched it, else from scratch."""
    if not (backbones / "pixels").is_dir():
        return Pixels.scratch(image_px, scratch.pixels)
    pixels = load_decoder(backbones / "pixels")
    assert isinstance(pixels, Pixels)
    pixels.resize(image_px)
    return pixels


def _save_pixels(pixels: Pixels, folder: Path, backbones: Path) -> None:
    config = {name: value for name, value in pixels.config.items() if not name.startswith("_")}
    write_description(folder, "pixels", image_px=pixels.image_px, config=config)
    save_tensors(pixels.decoder.state_dict(), folder / WEIGHTS)


def _read_pixels(folder: Path) -> Pixels:
    content = read_description(folder)
    pixels = Pixels(AutoencoderDC(**content["config"]), content["image_px"])
    pixels.decoder.load_state_dict(read_weights(folder / WEIGHTS))
    return pixels


KINDS: dict[str, Kind] = {
    "unclip": Kind(
        open=lambda backbones, scratch, image_px: load_generator(_there(backbones, "unclip")),
        save=lambda unclip, folder, backbones: save_generator(unclip, like=backbones / "unclip", folder=folder),
        read=load_generator,
    ),
    "text_to_image": Kind(
        open=lambda backbones, scratch, image_px: load_text_to_image(_there(backbones, "text_to_image")),
        save=lambda decoder, folder, backbones: save_generator(
            decoder, like=backbones / "text_to_image", folder=folder
        ),
        read=load_text_to_image,
    ),
    "flow": Kind(open=_new_flow, save=_save_flow, read=_read_flow),
    "pixels": Kind(
        open=_new_pixels,
        save=_save_pixels,
        read=_read_pixels,
    ),
}
