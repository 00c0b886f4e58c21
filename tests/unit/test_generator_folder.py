"""A generator on disk: any directory in the pipeline's layout, with text, PNDM, options, half precision."""

import copy
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableUnCLIPImg2ImgPipeline
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPTokenizer

from tests.toy_diffusion import save_text_to_image
from un2clip.decoders import Cond, NoiseConfig, Options, Unclip, load_generator, save_generator
from un2clip.decoders.assemble import from_text_to_image
from un2clip.errors import UserError
from un2clip.models.clip import load_clip
from un2clip.models.huggingface import bpe_tokenizer


@pytest.fixture(scope="module")
def unclip(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD-2.1-like unCLIP for the tiny CLIP, whose class embedding speaks, shipped with PNDM as the published ones."""
    made = tmp_path_factory.mktemp("sd")
    save_text_to_image(made / "sd")
    pipeline = from_text_to_image(made / "sd", load_clip(tiny.backbones / "clip"))
    torch.nn.init.normal_(pipeline.unet.class_embedding.linear_2.weight, std=0.1)
    pipeline.scheduler = PNDMScheduler.from_pretrained(made / "sd", subfolder="scheduler")
    pipeline.save_pretrained(made / "unclip")
    return made / "unclip"


@pytest.fixture(scope="module")
def loaded(unclip: Path) -> Unclip:
    return load_generator(unclip)


@pytest.fixture()
def generator(loaded: Unclip) -> Unclip:
    """One of a test's own."""
    return copy.deepcopy(loaded)


def copied(unclip: Path, folder: Path, options: Options) -> Path:
    shutil.copytree(unclip, folder)
    options.save(folder)
    return folder


def test_training_gets_ddpm_with_the_shipped_betas(unclip: Path, generator) -> None:
    """PNDM's configuration becomes DDPM with the same alphas and prediction type, and DDIM with its own offset."""
    shipped = PNDMScheduler.from_pretrained(unclip, subfolder="scheduler")
    assert torch.equal(generator.scheduler.alphas_cumprod, shipped.alphas_cumprod)
    assert generator.scheduler.config.prediction_type == "v_prediction"
    sampler = DDIMScheduler.from_config(generator.scheduler.config)
    assert sampler.config.steps_offset == 1 and sampler.final_alpha_cumprod == shipped.alphas_cumprod[0]


def test_latents_are_not_clipped_like_pixels(unclip: Path, generator) -> None:
    """diffusers would switch clip_sample on for a PNDM configuration; with it, one step of DDIM would differ."""
    theirs = DDIMScheduler.from_config(PNDMScheduler.from_pretrained(unclip, subfolder="scheduler").config)
    ours = DDIMScheduler.from_config(generator.scheduler.config)
    assert theirs.config.clip_sample and not ours.config.clip_sample


def test_a_schedule_without_betas_is_refused(unclip: Path, tmp_path: Path) -> None:
    """A flow-matching scheduler is named, not read as DDPM with DDPM's own defaults."""
    folder = copied(unclip, tmp_path / "flow", Options(prompt="", normalise=True, image_px=0))
    (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(UserError, match="scheduler/ has no beta_schedule: FlowMatchEulerDiscreteScheduler"):
        load_generator(folder)


@pytest.mark.parametrize("part", ["model_index.json", "unet", "vae", "image_normalizer", "scheduler", "tokenizer"])
def test_missing_part_is_named(unclip: Path, tmp_path: Path, part: str) -> None:
    """A directory without one of its parts is a UserError, not a traceback."""
    folder = tmp_path / "broken"
    shutil.copytree(unclip, folder)
    target = folder / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UserError, match="broken"):
        load_generator(folder)


PARTS = {
    "unet": "conv_in.weight", "vae": "decoder.conv_in.weight", "text_encoder": "final_layer_norm.weight",
    "image_normalizer": "std",
}  # fmt: skip
FAULTS = {
    "missing": (lambda weights, name: weights.pop(name), "NAME is missing"),
    "surplus": (lambda weights, name: weights.update(more=torch.ones(1)), "more has no place"),
    "integer": (lambda weights, name: weights.update({name: weights[name].int()}), "NAME is I32"),
    "not finite": (lambda weights, name: weights[name].view(-1)[:1].fill_(torch.nan), "NAME is not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_a_parts_own_are_refused(unclip: Path, tmp_path: Path, part: str, fault: str) -> None:
    """The libraries would make up a missing weight at random, so that two loads differ, and cast an integer."""
    shutil.copytree(unclip, tmp_path / "g")
    (file,) = (tmp_path / "g" / part).glob("*.safetensors")
    weights = load_file(file)
    (name,) = (each for each in weights if each.endswith(PARTS[part]))
    change, says = FAULTS[fault]
    change(weights, name)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part}.*{says.replace('NAME', name)}"):
        load_generator(tmp_path / "g")


def test_what_older_versions_wrote_beside_the_weights_is_passed_over(unclip: Path, tmp_path: Path) -> None:
    """Published text encoders have their positions' numbers, integers, as a tensor."""
    shutil.copytree(unclip, tmp_path / "g")
    file = tmp_path / "g/text_encoder/model.safetensors"
    weights = load_file(file)
    prefix = next(iter(weights)).partition("embeddings.")[0]
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, file, metadata={"format": "pt"})
    assert torch.equal(load_generator(tmp_path / "g").prompt_embeds, load_generator(unclip).prompt_embeds)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 40.0}, "scheduler/ are no noise schedule"),
        ("image_noising_scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "1 to 100000 num_train"),
        ("image_noising_scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "larger than any"),
        ("text_encoder/config.json", {"max_position_embeddings": 10**9}, "larger than any"),
        ("unet/config.json", {"block_out_channels": "x"}, "g: "),
        ("vae/config.json", {"latent_channels": [1]}, "g: "),
    ],
)
def test_numbers_that_no_part_has_are_refused(
    unclip: Path, tmp_path: Path, file: str, changes: dict[str, object], says: str
) -> None:
    """One line, neither a traceback nor gigabytes."""
    shutil.copytree(unclip, tmp_path / "g")
    content = json.loads((tmp_path / "g" / file).read_text())
    (tmp_path / "g" / file).write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=says):
        load_generator(tmp_path / "g")


def test_a_deviation_of_zero_is_refused(unclip: Path, tmp_path: Path) -> None:
    """The embedding is divided by it."""
    shutil.copytree(unclip, tmp_path / "g")
    (file,) = (tmp_path / "g/image_normalizer").glob("*.safetensors")
    weights = load_file(file)
    weights["std"][0, 3] = 0.0
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="a deviation of image_normalizer/ is not positive"):
        load_generator(tmp_path / "g")


@pytest.mark.parametrize("found", ["StableDiffusionXLPipeline", "StableDiffusionPipeline"])
def test_other_layouts_are_refused(unclip: Path, tmp_path: Path, found: str) -> None:
    """A directory for another pipeline says which; text-to-image says what to do with it."""
    folder = copied(unclip, tmp_path / "other", Options(prompt="", normalise=True, image_px=0))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": found}))
    with pytest.raises(UserError, match="backbones.generator.weights" if found.endswith("onPipeline") else found):
        load_generator(folder)


def test_prompt_is_the_pipelines(unclip: Path, tmp_path: Path) -> None:
    """The option `prompt` conditions every prediction, the empty one stays for guidance: images are the pipeline's."""
    folder = copied(unclip, tmp_path / "prompt", Options(prompt="a red circle", normalise=True, image_px=0))
    generator, pipeline = load_generator(folder), StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.randn(2, generator.embed_dim)
    how = {"guidance_scale": 2.0, "noise_level": 0}
    ours = generator.sample(Cond(vector=embeds), torch.Generator().manual_seed(1), sampling_steps=2, **how)
    for prompt, same in (("a red circle", True), ("", False)):
        rng = torch.Generator().manual_seed(1)
        theirs = pipeline(
            image_embeds=embeds, prompt=[prompt] * 2, generator=rng, num_inference_steps=2, output_type="pt", **how
        ).images
        assert torch.allclose(ours / 2 + 0.5, theirs, rtol=0, atol=1e-6) is same


def test_published_tokenizers_are_read(tmp_path: Path) -> None:
    """vocab.json and merges.txt give open_clip's token ids, and the padding is theirs: `!`, number 0."""
    save_text_to_image(tmp_path / "sd", tokenizer=bpe_tokenizer(16))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "sd", subfolder="tokenizer")
    text = "a red circle above a ball"
    expected = open_clip.get_tokenizer("ViT-H-14", context_length=16)(text)[0].tolist()
    assert tokenizer(text, padding="max_length", max_length=16).input_ids == expected and expected[-1] == 0


def test_image_px_changes_the_size(unclip: Path, tmp_path: Path) -> None:
    """0 is the U-Net's own size; another multiple of the VAE's step is read and drawn at that size."""
    folder = copied(unclip, tmp_path / "size", Options(prompt="", normalise=True, image_px=48))
    own, larger = load_generator(unclip), load_generator(folder)
    assert (own.image_px, own.target_shape) == (32, (4, 16, 16))
    assert (larger.image_px, larger.target_shape) == (48, (4, 24, 24))
    assert larger.encode(torch.rand(1, 3, 48, 48)).shape == (1, 4, 24, 24)
    embeds, rng = torch.randn(1, own.embed_dim), torch.Generator().manual_seed(0)
    drawn = larger.sample(Cond(vector=embeds), rng, sampling_steps=1, guidance_scale=1.0, noise_level=0)
    assert drawn.shape == (1, 3, 48, 48)


def test_latents_are_the_posteriors(generator) -> None:
    """Mean and deviation equal the VAE's own posterior times the scaling factor; encode is the mean."""
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = generator.posterior(images)
    with torch.no_grad():
        theirs = generator.vae.encode(images).latent_dist
    assert torch.equal(mean, theirs.mean * 0.18215) and torch.equal(std, theirs.std * 0.18215)
    assert torch.equal(generator.encode(images), mean) and mean.is_contiguous()


def test_a_vae_with_a_shift_is_read_as_diffusers_reads_it(generator) -> None:
    """FLUX's: its pipeline subtracts shift_factor before it scales, and adds it again before it decodes."""
    images, plain = torch.rand(2, 3, 32, 32) * 2 - 1, generator.vae_sha256()
    generator.vae.register_to_config(shift_factor=0.1159)
    with torch.no_grad():
        mean = generator.vae.encode(images).latent_dist.mean
        shown = generator.vae.decode(mean).sample.clamp(-1, 1)
    assert_close(generator.encode(images), (mean - 0.1159) * 0.18215)
    assert_close(generator.decode(generator.encode(images)), shown)
    assert generator.vae_sha256() != plain, "cached latents of the one are not the other's"


def loss_and_gradient(generator: Unclip) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(3, *generator.target_shape, generator=rng)
    embeds = torch.randn(3, generator.embed_dim, generator=rng, requires_grad=True)
    noise = NoiseConfig(
        timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 999), condition_dropout=0.0, time_scale=1.0
    )
    loss = generator.loss(latents, Cond(vector=embeds), generator.draw(3, rng, noise))["diffusion_loss"]
    loss.mean().backward()
    assert embeds.grad is not None
    return loss.detach(), embeds.grad


def test_gradients_flow_through_and_leave_none_behind(generator) -> None:
    """Every embedding gets a gradient through the frozen generator, and no weight of it does."""
    _, gradient = loss_and_gradient(generator)
    assert (gradient.abs().amax(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in generator.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_works_while_frozen(unclip: Path, checkpointing: bool) -> None:
    """In evaluation mode the switch makes blocks run twice, and changes neither loss nor gradient by a bit."""
    generator = load_generator(unclip)
    expected = loss_and_gradient(generator)
    runs: list[int] = []
    block = generator.unet.down_blocks[0].resnets[0]
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    generator.prepare(dtype=torch.float32, checkpointing=checkpointing)
    assert not generator.unet.training
    for ours, theirs in zip(loss_and_gradient(generator), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert len(runs) == (2 if checkpointing else 1)


def test_channels_last_computes_the_same(unclip: Path) -> None:
    """The memory layout changes nothing but rounding."""
    generator = load_generator(unclip)
    expected = loss_and_gradient(generator)
    generator.prepare(dtype=torch.float32, channels_last=True)
    assert generator.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(loss_and_gradient(generator), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_holds_the_networks_only(unclip: Path, generator) -> None:
    """U-Net and VAE are in bfloat16; statistics, latents, loss and gradient stay float32, near the exact ones."""
    half = load_generator(unclip)
    half.prepare(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.mean.dtype == half.std.dtype == half.encode(torch.rand(1, 3, 32, 32)).dtype == torch.float32
    (loss, gradient), (exact_loss, exact_gradient) = loss_and_gradient(half), loss_and_gradient(generator)
    assert loss.dtype == gradient.dtype == torch.float32
    assert_close(loss, exact_loss, rtol=0.02, atol=0)
    assert torch.nn.functional.cosine_similarity(gradient, exact_gradient).min() > 0.98


def test_float16_is_refused(generator) -> None:
    """SD-2.1's attention overflows in it: a UserError with the reason."""
    with pytest.raises(UserError, match="float32 or bfloat16, got float16: SD-2.1's attention overflows"):
        generator.prepare(dtype=torch.float16)


def test_files_in_half_precision_are_cast_up(unclip: Path, tmp_path: Path) -> None:
    """A mirror's float16 U-Net and normaliser load as float32."""
    folder = tmp_path / "half"
    StableUnCLIPImg2ImgPipeline.from_pretrained(unclip).to(dtype=torch.float16).save_pretrained(folder)
    generator = load_generator(folder)
    assert {value.dtype for value in (*generator.parameters(), *generator.buffers())} == {torch.float32}


def test_what_is_saved_loads_and_is_the_pipelines(unclip: Path, tmp_path: Path) -> None:
    """U-Net and statistics of a trained generator come back bit for bit, in diffusers' own class too."""
    generator = load_generator(unclip)
    mean, std = torch.randn(1, generator.embed_dim), torch.rand(1, generator.embed_dim) + 0.5
    generator.set_statistics(mean, std)
    torch.nn.init.ones_(generator.unet.conv_in.bias)
    generator.prepare(dtype=torch.float32, channels_last=True, checkpointing=True)
    save_generator(generator, like=unclip, folder=tmp_path / "trained")
    again = load_generator(tmp_path / "trained")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path / "trained")
    assert torch.equal(again.mean, mean) and torch.equal(pipeline.image_normalizer.std, std)
    for loaded in (again.unet, pipeline.unet):
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in generator.unet.state_dict().items())


@pytest.mark.parametrize("std", [[0.0], [float("nan")]])
def test_bad_statistics_are_refused(generator, std: list[float]) -> None:
    """A deviation of zero or none at all would divide the embedding into nothing."""
    with pytest.raises(UserError, match="not finite, or a deviation is not positive"):
        generator.set_statistics(generator.mean, torch.tensor(std).expand(1, generator.embed_dim))
