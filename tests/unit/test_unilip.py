"""UniLIP's recipe: its loss written out, its perceptual terms, its third stage, its autoencoder, its full sizes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from torch.nn.functional import interpolate, mse_loss
from torchmetrics.functional.image import lpips as lpips_module
from torchvision.models import convnext_small
from torchvision.models.vgg import cfgs, make_layers

from tests.rows import batches, prepare
from un2clip.config import build, merge, read_params, read_yaml
from un2clip.decoders import load_generator
from un2clip.decoders.diffusion import LatentDecoder
from un2clip.decoders.kinds import load_decoder, open_decoder
from un2clip.decoders.perceptual import (
    Perceptual,
    PerceptualConfig,
    PerceptualSource,
    fetch_perceptual,
    open_perceptual,
)
from un2clip.decoders.pixels import Pixels
from un2clip.errors import UserError
from un2clip.hashes import file_sha256
from un2clip.methods.conditions import new_condition
from un2clip.methods.features import Encoder, Features
from un2clip.methods.table import get_method
from un2clip.models.clip import load_clip
from un2clip.planning.plan import Plan
from un2clip.planning.published import DC_AE, new_clip, new_reconstruction
from un2clip.stages import run_stage
from un2clip.stages.backbones import Backbones
from un2clip.stages.finetune_job import Finetune

ROOT = Path(__file__).parents[2]
META = torch.device("meta")


def test_the_loss_is_unilips(tiny) -> None:
    """Squared error of pixels in [0, 1], and once the squared distance of the tokens from the frozen copy's."""
    clip, objective, _ = prepare(tiny, "unilip")
    with torch.no_grad():
        for parameter in clip.model.visual.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = next(batches(objective.decoder.target_shape))
    with torch.no_grad():
        found = objective(batch, {})
        own, kept = (Encoder(each.model.visual, "raw") for each in (clip, load_clip(tiny.backbones / "clip")))
        tokens, before = own(batch["pixel_values"]).tokens, kept(batch["pixel_values"]).tokens
        grid = tokens.transpose(1, 2).reshape(8, -1, 4, 4).movedim(1, -1)
        cells = objective.condition.cells
        for block in cells.blocks:
            grid = grid + block(grid)
        drawn = objective.decoder.decoder(cells.bottleneck(grid).movedim(-1, 1))
    for i in range(8):
        pixels = mse_loss((drawn[i] + 1) / 2, (batch["target"][i] + 1) / 2)
        torch.testing.assert_close(found["pixel_loss"][i], pixels, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["tokens"][i], mse_loss(tokens[i], before[i]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["loss"][i], pixels + mse_loss(tokens[i], before[i]), rtol=1e-5, atol=1e-6)
    assert len(cells.blocks) == 3 and found["tokens"].min() > 0
    linear = [each for each in cells.modules() if isinstance(each, torch.nn.Linear)]
    assert all(each.weight.std().item() == pytest.approx(0.02, rel=0.3) and not each.bias.any() for each in linear)


def test_merged_patches_are_internvls_cells(tiny) -> None:
    """Two by two patches are one cell: neighbours of the picture, and each in one cell alone."""
    _, objective, params = prepare(tiny, "unilip")
    objective.decoder.image_px = 16  # 2 cells of 8 px
    config = dataclasses.replace(params.conditions, spatial=dataclasses.replace(params.conditions.spatial, merge=2))
    tokens = torch.zeros(1, 16, 32)
    tokens[0, [2, 3, 6, 7]] = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))  # the upper right quarter
    condition = new_condition("spatial", Features(pooled=None, tokens=tokens), objective.decoder, 0, config)
    told, nothing = (condition(Features(pooled=None, tokens=each), {}).spatial for each in (tokens, 0 * tokens))
    assert told.shape == (1, 4, 2, 2) and condition.merge == 2
    differ = (told != nothing).any(dim=1)[0].tolist()
    assert differ == [[False, True], [False, False]]
    with pytest.raises(
        UserError, match="merges 2 by 2 patches into a cell, and the encoder gives 9; finetune.conditions"
    ):
        new_condition("spatial", Features(pooled=None, tokens=tokens[:, :9]), objective.decoder, 0, config)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """Files of torchvision's two networks, with weights at random: VGG16's convolutions alone, as few as will do."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    vgg = {f"features.{key}": value for key, value in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(vgg | {"classifier.0.weight": torch.zeros(1)}, folder / "vgg16.pth")
    torch.save(convnext_small(weights=None).state_dict(), folder / "convnext_small.pth")
    return {path.stem: path for path in folder.iterdir()}


def source(networks: dict[str, Path], **changes: object) -> PerceptualSource:
    return build(
        PerceptualSource, {name: {str(path): file_sha256(path)} for name, path in networks.items()} | changes, "p"
    )


def test_the_perceptual_terms_are_the_papers(networks, tmp_path) -> None:
    """LPIPS by its definition, of pictures in [-1, 1]; ImageNet logits at 224 px; by their weights; 0 for equals."""
    fetch_perceptual(source(networks), tmp_path / "perceptual")
    seen, absent = open_perceptual(tmp_path, PerceptualConfig(vgg16=1.0, convnext_small=0.1))
    assert seen is not None and absent == []
    rng = torch.Generator().manual_seed(0)
    drawn, target = (torch.rand(2, 2, 3, 32, 32, generator=rng) * 2 - 1).unbind()
    drawn.requires_grad_(True)
    terms = seen(drawn, target)
    heads = torch.load(Path(lpips_module.__file__).parent / "lpips_models/vgg.pth", map_location="cpu")
    layers = make_layers(cfgs["D"]).eval()
    layers.load_state_dict({k[9:]: v for k, v in torch.load(networks["vgg16"]).items() if k.startswith("features.")})
    shift, scale = (torch.tensor(each)[:, None, None] for each in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    with torch.no_grad():
        for i in range(2):
            x, y, distance = (drawn[i][None] - shift) / scale, (target[i][None] - shift) / scale, 0.0
            for number, layer in enumerate(layers):
                x, y = layer(x), layer(y)
                if number in (3, 8, 15, 22, 29):
                    a, b = (each / (each.square().sum(1, keepdim=True) + 1e-8).sqrt() for each in (x, y))
                    head = heads[f"lin{(3, 8, 15, 22, 29).index(number)}.model.1.weight"]
                    distance += float(((a - b).square() * head.reshape(1, -1, 1, 1)).sum(1).mean())
            assert terms["lpips"][i].item() == pytest.approx(distance, rel=1e-4)
        network = convnext_small(weights=None).eval()
        network.load_state_dict(torch.load(networks["convnext_small"]))
        mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
        size = {"size": (224, 224), "mode": "bilinear", "antialias": True}
        a, b = (network((interpolate((each + 1) / 2, **size) - mean) / std) for each in (drawn, target))
        torch.testing.assert_close(terms["logits"], 0.1 * (a - b).square().mean(1), rtol=1e-4, atol=1e-6)
        del seen.weights["convnext_small"]  # it takes long
        assert not seen(target, target)["lpips"].any()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(seen(drawn, target)["lpips"], terms["lpips"].detach())
    torch.stack(list(terms.values())).sum().backward()
    assert drawn.grad.abs().sum() > 0 and not any(each.requires_grad for each in seen.parameters())


def test_a_training_says_what_its_loss_is_without(tiny, networks, tmp_path, capsys) -> None:
    """Nothing is skipped silently; with VGG16 alone, ConvNeXt's term is named; a weight of 0 asks for none."""
    backbones = tmp_path / "backbones"
    backbones.mkdir()
    for name in ("clip", "unclip"):
        (backbones / name).symlink_to(tiny.backbones / name)
    names = {"method": "unilip", "seed": 3, "device": "cpu", "checkpoints": "", "shards": tiny.shards}
    section = merge(tiny.params["finetune"], {"phases": {"unilip-1": {"steps": 1}, "unilip-2": {"steps": 1}}})
    section["batch_size"] = 2

    def tune(to: str, **weights: float) -> list[dict[str, float]]:
        params = merge(section, {"perceptual": weights})
        run_stage("finetune", params, **names, backbones=backbones, latents=tiny.latents, encoder=tmp_path / to)
        return json.loads((tmp_path / to / "history.json").read_text())

    history = tune("without")
    said = "finetune: the loss is without lpips and logits: backbones.perceptual names no weights of vgg16 and conv"
    assert said in capsys.readouterr().out and "lpips" not in history[0]
    fetch_perceptual(source(networks, convnext_small={}), backbones / "perceptual")
    history = tune("lpips")
    assert "finetune: the loss is without logits: " in capsys.readouterr().out
    first = history[0]
    assert first["loss"] == pytest.approx(first["pixel_loss"] + first["lpips"], rel=1e-6) and first["lpips"] > 0
    parents = [json.loads((tmp_path / to / "lineage.json").read_text())["parents"] for to in ("without", "lpips")]
    assert parents[0]["generator"] != parents[1]["generator"], "the record differs too"
    assert not list((tmp_path / "lpips/aligned").rglob("*vgg*")) and not list((tmp_path / "lpips").rglob("*percept*"))
    tune("none", vgg16=0.0, convnext_small=0.0)
    assert "without" not in capsys.readouterr().out


def test_wrong_perceptual_weights_are_one_sentence(networks, tmp_path) -> None:
    """Absent, not what the hash says, or of another network: before anything trains, and nothing is written."""
    own, other = networks["vgg16"], networks["convnext_small"]
    for named, message in (
        ({str(tmp_path / "absent.pth"): "0" * 64}, "^backbones.perceptual.vgg16: cannot read .*absent.pth: No such"),
        ({str(own): "0" * 64}, "^backbones.perceptual.vgg16: .*vgg16.pth is not what was pinned"),
        ({str(other): file_sha256(other)}, "convnext_small.pth does not fit _NoTrainLpips: net.slice1"),
    ):
        with pytest.raises(UserError, match=message):
            fetch_perceptual(source(networks, vgg16=named), tmp_path / "perceptual")
        assert not (tmp_path / "perceptual").exists()
    with pytest.raises(UserError, match="p.vgg16 must name one file and its hash, got a, b"):
        source(networks, vgg16={"a": "0", "b": "0"})


def test_a_third_stage_reads_larger_images(tiny, tmp_path) -> None:
    """The encoder reads them too, by interpolated positions; its own stay of their shape, and move."""
    changes = {"phases": {"unilip-3": {"image_px": 48, "lr": {"encoder": 1e-3}}}}
    names = {"method": "unilip-high", "seed": 3, "device": "cpu", "checkpoints": "", "shards": tiny.shards}
    how = names | {"backbones": tiny.backbones, "latents": tiny.latents}
    run_stage("finetune", merge(tiny.params["finetune"], changes), **how, encoder=tmp_path / "encoder")
    history = json.loads((tmp_path / "encoder/history.json").read_text())
    assert len(history) == 9 and all(row["tokens"] == 0 for row in history[:4]) and history[-1]["tokens"] > 0
    folders = tiny.backbones / "clip", tmp_path / "encoder"
    before, after = (load_clip(each).model.visual.positional_embedding for each in folders)
    assert after.shape == before.shape and not torch.equal(after, before)
    kept = (load_decoder(tmp_path / f"encoder/{name}") for name in ("decoder", "aligned/decoder"))
    assert [decoder.image_px for decoder in kept] == [32, 32], "the encoder's own"
    wrong = merge(tiny.params["finetune"], {"phases": {"unilip-3": {"image_px": 36}}})
    with pytest.raises(UserError, match="^a side of 36 px is not a multiple of the encoder's patch of 8 px$"):
        run_stage("finetune", wrong, **how, encoder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_decoder_may_come_with_weights(tiny, tmp_path) -> None:
    """Of diffusers' AutoencoderDC the decoder half is read, kept and trained from; its factor must be one."""
    size = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": (1,) * 4, "qkv_multiscales": ((),) * 4}
    both = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in size.items()}
    autoencoder = AutoencoderDC(latent_channels=4, **both)
    autoencoder.save_pretrained(tmp_path / "dc-ae")
    section = merge(tiny.params["backbones"], {
        "encoder": {"weights": str(tiny.backbones / "clip")}, "generator": {"weights": "none"},
        "text_to_image": {"weights": "none"}, "pixels": {"weights": str(tmp_path / "dc-ae")},
    })  # fmt: skip
    run_stage("backbones", section, seed=1, device="cpu", images=tiny.images, backbones=tmp_path / "backbones")
    made = sorted(path.name for path in (tmp_path / "backbones").iterdir())
    assert made == ["clip", "pixels"]
    scratch, cpu = build(Finetune, tiny.params["finetune"], "finetune").scratch, torch.device("cpu")
    pixels = open_decoder("pixels", tmp_path / "backbones", scratch=scratch, image_px=24, seed=0, device=cpu)
    assert isinstance(pixels, Pixels) and pixels.image_px == 24
    for key, value in autoencoder.decoder.state_dict().items():
        assert torch.equal(pixels.decoder.state_dict()[key], value)
    (tmp_path / "dc-ae/config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", "latent_channels": 5}))
    with pytest.raises(UserError, match="dc-ae"):
        run_stage("backbones", section, seed=1, device="cpu", images=tiny.images, backbones=tmp_path / "other")


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_latent_factor_is_said(tiny, factor: float) -> None:
    """Of a VAE whose latents would be nothing, turned around, or no numbers: where a decoder is made of it."""
    vae = load_generator(tiny.backbones / "unclip").vae
    vae.register_to_config(scaling_factor=factor)
    with pytest.raises(UserError, match="the VAE's configuration says scaling_factor .* must be positive"):
        LatentDecoder(vae, 32)


def test_full_size_shapes() -> None:
    """UniLIP-1B at 224 and 448 px through DC-AE: 64 and 256 cells of 32 numbers; gradients reach the tower."""
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{name}.yaml" for name in ("unilip", "unilip-1b")])
    numbers, backbones = build(Finetune, params["finetune"], "f"), build(Backbones, params["backbones"], "b")
    row, told = get_method(params["method"]), list[torch.Size]()
    with META:
        objective, image_size = new_reconstruction(backbones, numbers, row)
        decoder = objective.decoder
        assert image_size == (448, 448) and decoder.stride == 32
        decoder.decoder.register_forward_pre_hook(lambda module, given: told.append(given[0].shape))
        for phase, trains in zip(numbers.phases_of(row), (False, False, True), strict=True):
            objective.check(phase.image_px)
            decoder.resize(phase.image_px)
            objective.requires_grad_(trains)
            images = torch.empty(2, 3, phase.image_px, phase.image_px)
            loss = objective({"pixel_values": images, "target": images}, {})["loss"]
        loss.mean().backward()
    assert told == [(2, 32, 8, 8), (2, 32, 8, 8), (2, 32, 16, 16)]
    assert all(each.grad is not None for each in objective.encoder.parameters())
    count = {name: sum(each.numel() for each in part.parameters()) / 1e6 for name, part in objective.parts().items()}
    assert count["encoder"] == pytest.approx(304.01 + 4.48, abs=0.01), "InternViT-300M and the connector"
    assert count["decoder"] == pytest.approx(159.2, abs=0.1)


def test_the_other_overlays_fit() -> None:
    """UniLIP-3B's tokens are 1536 wide; OpenAI's L gives 16 by 16 patches, which are merged into 8 by 8 cells."""
    for overlay, (side, width) in {"unilip-3b": (448, 1536), "openai-vit-l-14": (224, 1024)}.items():
        params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{name}.yaml" for name in ("unilip", overlay)])
        numbers = build(Finetune, params["finetune"], "finetune")
        with META:
            clip = new_clip(build(Backbones, params["backbones"], "backbones").encoder)
            decoder = Pixels(AutoencoderDC(**read_yaml(DC_AE)), side)
            features = Encoder(clip.model.visual, "raw")(torch.empty(1, 3, side, side))
            condition = new_condition("spatial", features, decoder, 0, numbers.conditions)
            assert features.tokens.shape == (1, 256, width) and clip.image_size == (side, side)
            assert condition(features, {}).spatial.shape == (1, 32, side // 28, side // 28)


def test_a_plan_counts_larger_images_where_they_are_read() -> None:
    """On the laptop pair: twice the side is four times the patches, and the decoder's operations."""
    overlay = {"method": "unilip-high", "finetune": {"phases": {"unilip-3": {"image_px": 64}}}}
    plan = Plan(merge(read_params(ROOT / "params.yaml"), overlay))
    _, second, third = (phase.flops for phase in plan.phases)
    assert third["encoder"].forward > 3.5 * second["encoder"].forward > 0
    assert third["decoder"].forward == 4 * second["decoder"].forward
    smaller, larger = (plan.memory(number, checkpointing=False, images=2).step for number in (1, 2))
    assert larger > 2 * smaller


def test_a_network_without_weight_is_not_built() -> None:
    """A weight of 0 costs nothing."""
    assert not Perceptual({"vgg16": 0.0}).networks
