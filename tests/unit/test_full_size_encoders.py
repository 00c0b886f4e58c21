"""The real architectures at full size, on the meta device: numbers against those that were published."""

from pathlib import Path

import pytest
import torch

from un2clip.config import build, read_params
from un2clip.errors import UserError
from un2clip.models.converting import Encoder, architecture_config, convert_checkpoint, new_model
from un2clip.sources.hub import HUB_ID

ROOT = Path(__file__).parents[2]
# Millions of parameters, both towers and the image tower: open_clip's docs/model_profile.csv (commit 3b37473, columns
# mparams, image_mparams); embedding width, and the visual tower's position embedding: side / 14 squared, and CLS.
PUBLISHED = {
    "openai-vit-l-14": (427.62, 303.97, 768, (257, 1024)),
    "openai-vit-l-14-336": (427.94, 304.29, 768, (577, 1024)),
    "openclip-vit-h-14": (986.11, 632.08, 1024, (257, 1280)),
    "siglip-so400m-224": (877.36, 427.68, 1152, (1, 256, 1152)),
    "siglip-so400m-384": (877.96, 428.23, 1152, (1, 729, 1152)),
    "metaclip-l": (427.62, 303.97, 768, (257, 1024)),
    "metaclip-h": (986.11, 632.08, 1024, (257, 1280)),
    "dfn-h": (986.11, 632.08, 1024, (257, 1280)),
    "dfn-h-378": (986.71, 632.68, 1024, (730, 1280)),
}
QUICKGELU = {"openai-vit-l-14", "openai-vit-l-14-336", "metaclip-l", "metaclip-h", "dfn-h", "dfn-h-378"}


def encoder_of(overlay: str) -> Encoder:
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{overlay}.yaml"])
    return build(Encoder, params["backbones"]["encoder"], "backbones.encoder")


def test_every_encoder_overlay_is_here() -> None:
    """The table and configs/ name the same encoders."""
    found = {path.stem for path in (ROOT / "configs").glob("*.yaml") if "architecture:" in path.read_text()}
    assert found - {"unilip-1b", "unilip-3b"} == set(PUBLISHED), "InternVL's are in test_internvl.py"


@pytest.mark.parametrize("overlay", PUBLISHED)
def test_sizes_are_the_published_ones(overlay: str) -> None:
    """Parameters to 0.01 million, embedding width, shapes, activation and preprocessing."""
    millions, image_millions, embed_dim, positions = PUBLISHED[overlay]
    config = architecture_config(encoder_of(overlay).architecture)
    with torch.device("meta"):
        model = new_model(config["model_cfg"])
        side = config["model_cfg"]["vision_cfg"]["image_size"]
        pixels = torch.empty(2, 3, side, side)
        assert model.encode_image(pixels).shape == (2, embed_dim)
    count = [sum(value.numel() for value in part.parameters()) / 1e6 for part in (model, model.visual)]
    assert count == pytest.approx([millions, image_millions], abs=0.006)
    visual = dict(model.visual.named_parameters())
    assert visual["trunk.pos_embed" if "siglip" in overlay else "positional_embedding"].shape == positions
    assert config["model_cfg"]["embed_dim"] == embed_dim
    assert bool(config["model_cfg"].get("quick_gelu")) == (overlay in QUICKGELU)
    squash = overlay.startswith(("siglip", "dfn"))
    assert config["preprocess_cfg"]["resize_mode"] == ("squash" if squash else "shortest")
    assert config["preprocess_cfg"]["mean"][0] == (0.5 if overlay.startswith("siglip") else 0.48145466)


@pytest.mark.parametrize("overlay", PUBLISHED)
def test_an_unpinned_overlay_refuses_and_says_what_to_do(overlay: str, tmp_path) -> None:
    """No hash was invented: the run stops before the hub is asked, and names the command in the overlay's header."""
    encoder = encoder_of(overlay)
    assert HUB_ID.fullmatch(encoder.weights) and not encoder.revision and not encoder.sha256
    with pytest.raises(UserError, match=f"`un2clip pin {encoder.weights}` prints what to write"):
        convert_checkpoint(encoder, tmp_path)
    assert f"un2clip pin {encoder.weights} " in (ROOT / f"configs/{overlay}.yaml").read_text()
