"""`align`: an unCLIP for any CLIP, from a text-to-image Stable Diffusion; `backbones.generator`, which fetches one."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline
from PIL import Image
from torch.testing import assert_close

from tests.toy_clips import write_folder
from tests.toy_diffusion import save_text_to_image
from un2clip.config import build, read_params
from un2clip.decoders import Cond, NoiseConfig, Options, load_generator
from un2clip.decoders.assemble import add_class_projection, measure_statistics
from un2clip.decoders.fetching import GeneratorSource, fetch_generator
from un2clip.errors import UserError
from un2clip.models.clip import Clip, load_clip, save_clip
from un2clip.stages import run_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text_to_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd") / "sd"
    save_text_to_image(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tiny) -> Clip:
    return load_clip(tiny.backbones / "clip")


@pytest.fixture(scope="module")
def fetched(text_to_image: Path, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `backbones` writes for a text-to-image directory."""
    folder = tmp_path_factory.mktemp("backbones") / "unclip"
    fetch_generator(source(text_to_image), clip, folder)
    return folder


def source(weights: Path, **changes: object) -> GeneratorSource:
    values = {"revision": "", "sha256": {}, "prompt": "", "normalise": True, "image_px": 0} | changes
    return build(GeneratorSource, {"weights": str(weights), **values}, "backbones.generator")


def test_untrained_it_predicts_what_text_to_image_does(text_to_image: Path, fetched: Path, clip: Clip) -> None:
    """Whatever the embedding, the assembled unCLIP's prediction is the text-to-image U-Net's, bit for bit."""
    generator, before = load_generator(fetched), StableDiffusionPipeline.from_pretrained(text_to_image)
    latents, timesteps = torch.randn(4, 4, 16, 16), torch.tensor([0, 10, 500, 999])
    labels = 100 * torch.randn(4, 2 * clip.embed_dim)
    with torch.no_grad():
        prompt, _ = before.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
        theirs = before.unet(latents, timesteps, prompt.expand(4, -1, -1)).sample
        told = Cond(vector=labels, sequence=generator.prompt_embeds.expand(4, -1, -1))
        assert torch.equal(generator.at(latents, timesteps, told), theirs)
    assert generator.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(generator.scheduler.alphas_cumprod, before.scheduler.alphas_cumprod)


def test_it_learns_from_the_first_step(fetched: Path, clip: Clip) -> None:
    """The zero layer gets a gradient, and after one step of it the embedding matters."""
    generator, rng = load_generator(fetched), torch.Generator().manual_seed(0)
    layer = generator.unet.class_embedding.linear_2
    latents, embeds = torch.randn(4, 4, 16, 16, generator=rng), torch.randn(4, clip.embed_dim, generator=rng)
    noise = NoiseConfig(
        timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 999), condition_dropout=0.25, time_scale=1.0
    )
    noise_sample = generator.draw(4, rng, noise)

    def loss(image_embeds: torch.Tensor) -> torch.Tensor:
        return generator.loss(latents, Cond(vector=image_embeds), noise_sample)["diffusion_loss"]

    with torch.no_grad():
        assert torch.equal(loss(embeds), loss(-embeds))
    layer.requires_grad_(True)
    loss(embeds).mean().backward()
    with torch.no_grad():
        layer.weight -= layer.weight.grad
        kept = loss(embeds) != loss(-embeds)
    assert torch.equal(kept, noise_sample["keep"]) and kept.any()


def test_diffusers_draws_with_it(fetched: Path) -> None:
    """The directory is a whole pipeline: image encoder, feature extractor, embedding noise of SD-2.1 unCLIP."""
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(fetched)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(image=Image.new("RGB", (40, 32), "red"), num_inference_steps=1).images[0].size == (32, 32)
    assert pipeline.image_noising_scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_a_tower_that_diffusers_cannot_hold(text_to_image: Path, tmp_path: Path) -> None:
    """For a CLIP whose tower has no CLIPVisionModelWithProjection, the pipeline goes without and takes embeddings.

    diffusers asks the image encoder for its dtype even then; any other part can answer that.
    """
    vision_cfg = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    model_cfg = {"embed_dim": 12, "vision_cfg": vision_cfg, "text_cfg": {"width": 16, "heads": 1, "layers": 1}}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    resnet = open_clip.model.CLIP(**copy.deepcopy(model_cfg))
    save_clip(Clip(model=resnet, preprocess=None, tokenize=None, config=config), tmp_path / "clip")
    fetch_generator(source(text_to_image), load_clip(tmp_path / "clip"), tmp_path / "unclip")
    assert load_generator(tmp_path / "unclip").embed_dim == 12
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path / "unclip", image_encoder=None)
    pipeline.register_modules(image_encoder=pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(image_embeds=torch.randn(1, 12), prompt="", num_inference_steps=1, output_type="pt").images
    assert drawn.shape == (1, 3, 32, 32)


def test_a_class_embedding_is_not_replaced(tiny) -> None:
    """A U-Net that is conditioned on classes already is refused."""
    unet = load_generator(tiny.backbones / "unclip").unet
    with pytest.raises(UserError, match="a class embedding already"):
        add_class_projection(unet, 8)


def test_statistics_are_of_the_first_images(clip: Clip) -> None:
    """Mean and deviation against torch's over the embeddings of the first 10 of 12 images, in batches of 4."""
    pixel_values = torch.randn(12, 3, 32, 32)
    mean, std = measure_statistics(clip, pixel_values.split(4), at_most=10)
    embeds = clip.embed(pixel_values[:10])
    assert_close(mean, embeds.mean(0, keepdim=True), rtol=0, atol=1e-6)
    assert_close(std, embeds.std(0, keepdim=True), rtol=0, atol=1e-6)
    batches = iter(pixel_values.split(4))
    measure_statistics(clip, batches, at_most=8)
    assert torch.equal(next(batches), pixel_values[8:])
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        measure_statistics(clip, pixel_values.split(4), at_most=1)


def test_an_unclip_is_copied_and_its_options_kept(tiny, clip: Clip, tmp_path: Path) -> None:
    """Weights arrive byte for byte, through a link too, as a hub id's are; other formats and half-precision twins stay
    behind; options lie beside them.
    """
    original, folder = tmp_path / "original", tmp_path / "unclip"
    shutil.copytree(tiny.backbones / "unclip", original)
    for name in ("sd21-unclip.ckpt", "unet/model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (original / name).write_bytes(b"not opened")
    vae = original / "vae/diffusion_pytorch_model.safetensors"
    vae.rename(tmp_path / "elsewhere")
    vae.symlink_to(tmp_path / "elsewhere")
    fetch_generator(source(original, prompt="a photo", normalise=False, image_px=16), clip, folder)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / weights).read_bytes() == (original / weights).read_bytes()
    assert sorted(path.name for path in (folder / "unet").iterdir()) == ["config.json", weights.rpartition("/")[2]]
    assert not (folder / "sd21-unclip.ckpt").exists() and not (folder / "vae" / vae.name).is_symlink()
    generator = load_generator(folder)
    assert (generator.normalise, generator.image_px) == (False, 16)
    assert Options.of(folder) == Options(prompt="a photo", normalise=False, image_px=16)


def test_a_wrong_hash_stops_the_run(tiny, clip: Clip, tmp_path: Path) -> None:
    """With the right hash of the U-Net it is taken; with another one nothing is written."""
    weights = "unet/diffusion_pytorch_model.safetensors"
    right = hashlib.sha256((tiny.backbones / "unclip" / weights).read_bytes()).hexdigest()
    fetch_generator(source(tiny.backbones / "unclip", sha256={weights: right}), clip, tmp_path / "taken")
    wrong = source(tiny.backbones / "unclip", sha256={weights: right[::-1]})
    with pytest.raises(UserError, match=r"backbones.generator: .*is not what was pinned"):
        fetch_generator(wrong, clip, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_pickled_weights_are_not_opened(tiny, clip: Clip, tmp_path: Path) -> None:
    """A directory whose U-Net is a .bin is refused before anything of it is read."""
    shutil.copytree(tiny.backbones / "unclip", tmp_path / "pickled")
    unet = tmp_path / "pickled/unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no file unet/\*.safetensors"):
        fetch_generator(source(tmp_path / "pickled"), clip, tmp_path / "unclip")


def test_an_unclip_of_another_width_is_refused(fetched: Path, tmp_path: Path) -> None:
    """The generator's width is compared with the encoder's before any training."""
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"width": 16, "heads": 1, "layers": 1},
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": {}}
    wider = Clip(model=open_clip.model.CLIP(**model_cfg), preprocess=None, tokenize=None, config=config)
    with pytest.raises(UserError, match="24 numbers and the generator understands 16"):
        fetch_generator(source(fetched), wider, tmp_path / "unclip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_px": -8}, "backbones.generator.image_px must be 0"),
        ({"sha256": {"unet/x.safetensors": "abc"}}, "backbones.generator.sha256 of unet/x.safetensors must be 64"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Ranges are checked when params.yaml is read, and named in full."""
    with pytest.raises(UserError, match=message):
        source(tmp_path, **changes)


def test_a_toy_draws_at_its_own_size() -> None:
    """The toy is trained here at clip.image_px, so another size is a contradiction."""
    with pytest.raises(UserError, match="image_px must be 0 with toy weights, which draw at clip.image_px; got 64"):
        source(Path("toy"), image_px=64)


def test_a_siglip_is_aligned_with_nothing_trained_here(text_to_image: Path, tmp_path: Path) -> None:
    """Both parts given, the stage needs no images: a SigLIP folder and a text-to-image one become the two backbones."""
    params = read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])["backbones"]
    write_folder(tmp_path / "siglip", "siglip")
    params["encoder"]["weights"], params["generator"]["weights"] = str(tmp_path / "siglip"), str(text_to_image)
    params["text_to_image"]["weights"] = "none"
    made = tmp_path / "backbones"
    run_stage("backbones", params, seed=0, device="cpu", images=tmp_path / "absent", backbones=made)
    generator = load_generator(made / "unclip")
    generator.check_fits(load_clip(made / "clip").embed_dim)
    config = json.loads((made / "unclip/feature_extractor/preprocessor_config.json").read_text())
    assert config["size"] == {"height": 32, "width": 32} and config["image_mean"] == [0.5] * 3
    assert json.loads((made / "unclip/model_index.json").read_text())["image_encoder"] == [None, None]
