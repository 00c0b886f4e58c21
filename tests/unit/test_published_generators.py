"""The published generators' shapes, on the meta device: nothing is allocated and nothing computed."""

from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from un2clip.config import read_yaml
from un2clip.datasets.loader import to_device
from un2clip.decoders import Cond, NoiseConfig
from un2clip.decoders.assemble import add_class_projection
from un2clip.decoders.unclip import MADE_FOR, Unclip
from un2clip.planning import published
from un2clip.planning.published import CONFIG

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
OVERLAYS = [path for path in CONFIGS if "architecture: ViT" in path.read_text()]  # InternVL's have no generator
META = torch.device("meta")


def new_generator(name: str, image_px: int | None = None) -> Unclip:
    with META:
        return published.new_generator(CONFIG["embed_dim"][name], image_px)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "embed_dim"), [("unclip-l", 768), ("unclip-h", 1024)])
def test_sizes_are_the_published_ones(name: str, embed_dim: int) -> None:
    """U-Net 865.91 M and VAE 83.7 M, as the original code prints; the projection 2 D -> 1280 -> 1280 on top.

    The mirror's file list has 3.48 GB for unclip-l's U-Net in float32.
    """
    generator = new_generator(name)
    projection = generator.unet.class_embedding
    assert round((count(generator.unet) - count(projection)) / 1e6, 2) == 865.91
    assert round(count(generator.vae) / 1e6, 1) == 83.7
    assert count(projection) == 2 * embed_dim * 1280 + 1280 + 1280 * 1280 + 1280
    assert round(4 * count(generator.unet) / 1e9, 2) == 3.48
    assert embed_dim in MADE_FOR and generator.embed_dim == embed_dim


@pytest.mark.parametrize(("image_px", "side"), [(768, 96), (512, 64)])
def test_a_training_step_has_the_published_shapes(image_px: int, side: int) -> None:
    """An image of 768 px has latents 4 x 96 x 96, one of 512 px 4 x 64 x 64; loss and gradient come out."""
    own = new_generator("unclip-l")
    assert (own.image_px, own.target_shape) == (768, (4, 96, 96))
    generator = new_generator("unclip-l", image_px)
    latents = generator.encode(torch.zeros(2, 3, image_px, image_px))
    assert latents.shape == (2, 4, side, side)
    embeds = torch.zeros(2, 768, device=META, requires_grad=True)
    noise = NoiseConfig(
        timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 0), condition_dropout=0.0, time_scale=1.0
    )
    noise_sample = to_device(generator.draw(2, torch.Generator(), noise), META)
    loss = generator.loss(latents, Cond(vector=embeds), noise_sample)["diffusion_loss"]
    loss.mean().backward()
    assert loss.shape == (2,) and embeds.grad is not None and embeds.grad.shape == (2, 768)


def test_a_text_to_image_unet_becomes_one_for_siglip() -> None:
    """align adds 2 x 1152 -> 1280 -> 1280 to SD-2.1's U-Net, and nothing else."""
    unet = new_generator("unclip-l").unet
    unet.class_embedding = None
    unet.register_to_config(class_embed_type=None)
    before = count(unet)
    with META:
        add_class_projection(unet, 1152)
    assert count(unet) - before == 2 * 1152 * 1280 + 1280 + 1280 * 1280 + 1280


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_encoder_and_generator_of_an_overlay_fit(overlay: Path) -> None:
    """A published generator has the encoder's width and was made for it; any other encoder's own is aligned for it."""
    backbones = read_yaml(overlay)["backbones"]
    name = Path(backbones["generator"]["weights"]).name
    architecture, _, tag = backbones["encoder"]["architecture"].partition(":")
    if name in CONFIG["embed_dim"]:
        assert open_clip.get_model_config(architecture)["embed_dim"] == CONFIG["embed_dim"][name]
        assert tag in ("openai", "laion2b_s32b_b79k")
    else:
        assert name == f"unclip-{overlay.stem}"
