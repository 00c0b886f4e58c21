"""Operations of a step: counted by hand for single layers, and the parts against the whole."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tests.rows import prepare
from un2clip import devices
from un2clip.config import build, read_params
from un2clip.datasets.loader import to_device
from un2clip.decoders.decoder import NoiseConfig
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.methods.flops import META, count_step, counted, on_meta, per_image
from un2clip.methods.table import get_method
from un2clip.models.converting import Encoder
from un2clip.planning.published import new_clip, new_reconstruction
from un2clip.stages.backbones import Backbones
from un2clip.stages.finetune_job import Finetune
from un2clip.training import progress

ROOT = Path(__file__).parents[2]
#: Overlay -> 10^9 operations of the image tower: open_clip's docs/model_profile.csv (commit 3b37473), image_gflops.
PUBLISHED = {
    "openai-vit-l-14": 162.03,
    "openai-vit-l-14-336": 381.92,
    "openclip-vit-h-14": 334.59,
    "siglip-so400m-224": 220.35,
    "siglip-so400m-384": 670.35,
}
NOISE = NoiseConfig(
    timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 0), condition_dropout=0.0, time_scale=1.0
)


def test_a_linear_layer_by_hand() -> None:
    """(5, 7) x (7, 11): a multiplication and an addition for each product; twice that back, for input and weight."""
    layer, x = nn.Linear(7, 11, device=META), torch.empty(5, 7, device=META, requires_grad=True)
    y, forward = counted(lambda: layer(x))
    _, backward = counted(lambda: y.sum().backward())
    assert (forward, backward) == (2 * 5 * 7 * 11, 2 * 2 * 5 * 7 * 11)


def test_a_frozen_layer_passes_the_gradient_on_at_half_the_price() -> None:
    """No gradient of the weights: what a frozen generator saves."""
    layer, x = nn.Linear(7, 11, device=META).requires_grad_(False), torch.empty(5, 7, device=META, requires_grad=True)
    y = layer(x)
    assert counted(lambda: y.sum().backward())[1] == 2 * 5 * 7 * 11


def test_a_convolution_by_hand() -> None:
    """3 x 3 over 4 -> 6 channels at stride 2: 2 x 9 x 4 x 6 at each of the 2 x 8 x 8 places of the result."""
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, device=META)
    _, forward = counted(lambda: layer(torch.empty(2, 4, 16, 16, device=META)))
    assert forward == 2 * 9 * 4 * 6 * 2 * 8 * 8


def test_an_attention_by_hand() -> None:
    """Scores and values: two products of 10 x 12 pairs of 16 numbers, for 2 pictures of 3 heads; twice that back."""
    q = torch.empty(2, 3, 10, 16, device=META, requires_grad=True)
    k = torch.empty(2, 3, 12, 16, device=META, requires_grad=True)
    y, forward = counted(lambda: scaled_dot_product_attention(q, k, k))
    _, backward = counted(lambda: y.sum().backward())
    assert (forward, backward) == (2 * 2 * 3 * 2 * 10 * 12 * 16, 2 * 2 * 2 * 3 * 2 * 10 * 12 * 16)


@pytest.mark.parametrize("method", ["un2clip", "un2clip-anchored", "projector-random", "update-generator", "unilip"])
def test_parts_are_the_whole(method: str) -> None:
    """The parts' sum is what one step of the real objective takes: of the laptop pair, all at once."""
    params = read_params(ROOT / "params.yaml")
    row, finetune = get_method(method), build(Finetune, params["finetune"], "finetune")
    with META:
        objective, size = new_reconstruction(build(Backbones, params["backbones"], "backbones"), finetune, row)
    trains, decoder = row.phases[-1].trains, objective.decoder
    parts = count_step(objective, trains, size, NOISE, images=3)
    batch = {
        "pixel_values": torch.empty(3, 3, *size, device=META),
        "images": torch.empty(3, 3, decoder.image_px, decoder.image_px, device=META),
        "keys": [""] * 3,
    }
    sample = to_device(objective.draw(batch, 3, torch.Generator(), NOISE), META)

    def step() -> None:
        objective(batch | {"target": decoder.target(batch)}, sample)["loss"].mean().backward()

    assert sum(part.total for part in parts.values()) == counted(step)[1] > 0
    assert bool(parts["encoder"].backward) and bool(parts["reference"].total) == bool(objective.anchors)


@pytest.mark.parametrize("overlay", PUBLISHED)
def test_encoders_take_what_is_published(overlay: str) -> None:
    """open_clip's own count, which multiplies too, within what it is rounded to."""
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{overlay}.yaml"])
    with META:
        clip = new_clip(build(Encoder, params["backbones"]["encoder"], "backbones.encoder"))
        _, flops = counted(lambda: clip.model.visual(torch.empty(1, 3, *clip.image_size)))
    assert flops / 1e9 == pytest.approx(PUBLISHED[overlay], abs=0.006)


def test_a_full_size_step() -> None:
    """ViT-L-14 through unCLIP-L at 768 px; of the frozen U-Net only the way back to the embedding."""
    params = read_params(ROOT / "params.yaml", [ROOT / "configs/paper.yaml", ROOT / "configs/openai-vit-l-14.yaml"])
    finetune, backbones = (build(cls, params[n], n) for cls, n in ((Finetune, "finetune"), (Backbones, "backbones")))
    with META:
        objective, size = new_reconstruction(backbones, finetune, get_method("un2clip"))
    parts = count_step(objective, ("encoder",), size, NOISE, images=1)
    assert objective.decoder.image_px == 768
    assert parts["encoder"].backward == pytest.approx(2 * parts["encoder"].forward, rel=0.002)
    assert parts["condition"].total == parts["reference"].total == 0
    assert parts["decoder"].forward < parts["decoder"].backward < 1.5 * parts["decoder"].forward
    twice = count_step(objective, ("encoder",), size, NOISE, images=2)
    assert sum(each.total for each in twice.values()) == 2 * sum(each.total for each in parts.values())


@pytest.mark.parametrize("method", ["un2clip-noised-held", "diva", "unilip", "dcr", "genhancer"])
def test_what_trains_is_counted_as_it_is_planned(tiny, method: str) -> None:
    """A copy without numbers of a real objective has the operations of a new one; its own weights stay as they are."""
    clip, objective, params = prepare(tiny, method)
    named = get_method(method).phases[0]
    phase = dataclasses.replace(params.phases[named.numbers], noise_samples=2, lora={})
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    count, with_cache = (
        per_image(objective, named.trains, clip.image_size, phase, cached=cached) for cached in (False, True)
    )
    assert all(value.is_meta for value in on_meta(objective).state_dict().values())
    found, target = count(), 2 * count() - 2 * with_cache()
    assert found > 0 and all(torch.equal(value, objective.state_dict()[name]) for name, value in before.items())
    once = per_image(objective, named.trains, clip.image_size, dataclasses.replace(phase, noise_samples=1), cached=True)
    assert with_cache() == 2 * once() and (target > 0) == isinstance(objective.decoder, LatentDecoder)


def test_the_bar_and_the_curves_have_the_share(monkeypatch) -> None:
    """Images a second times an image's operations, over the matrix rate; once the training has taken its while."""
    monkeypatch.setattr(progress.devices, "matrix_rate", lambda device, dtype: 1e9)
    with progress.Progress(3, 0, torch.device("cpu"), "encoder", lambda: 1e6) as bar:
        assert "mfu" not in bar.update({"loss": 1.0}, samples=4)
        monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
        measured = bar.update({"loss": 1.0}, samples=4)
        assert measured["mfu"] == pytest.approx(measured["images_per_s"] * 1e6 / 1e9) and "MFU" in bar.bar.postfix
    with progress.Progress(3, 0, torch.device("cpu"), "encoder") as bar:
        assert "mfu" not in bar.update({"loss": 1.0}, samples=4), "nothing says what an image takes"


def test_the_matrix_rate_is_that_of_a_product() -> None:
    """It is what torch.mm does in the same time, to a factor: other work is on this machine."""
    rate = devices.matrix_rate(torch.device("cpu"), torch.float32, seconds=0.05)
    matrix, start = torch.ones(1024, 1024), time.perf_counter()
    torch.mm(matrix, matrix)
    assert 0.1 < rate * (time.perf_counter() - start) / (2 * 1024**3) < 10
