import re

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableUnCLIPImg2ImgPipeline
from PIL import Image
from torch.testing import assert_close

from un2clip.decoders import Unclip, load_generator
from un2clip.decoders.decoder import Cond
from un2clip.errors import UserError
from un2clip.models.clip import load_clip
from un2clip.models.huggingface import to_hugging_face_vision


@pytest.fixture(scope="module")
def pipeline(tiny) -> StableUnCLIPImg2ImgPipeline:
    made = StableUnCLIPImg2ImgPipeline.from_pretrained(tiny.backbones / "unclip")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def generator(tiny) -> Unclip:
    return load_generator(tiny.backbones / "unclip")


@pytest.mark.parametrize("level", [0, 1, 500, 999])
def test_condition_equals_the_pipelines(generator, pipeline, level: int) -> None:
    """class_labels gives noise_image_embeddings' numbers for the same noise, bit for bit."""
    embeds, noise = torch.randn(2, 3, generator.embed_dim)
    with torch.no_grad():
        theirs = pipeline.noise_image_embeddings(embeds, noise_level=level, noise=noise)
    assert torch.equal(generator.class_labels(embeds, torch.full((3,), level), noise), theirs)


def test_noise_level_may_differ_by_sample(generator, pipeline) -> None:
    """A batch with levels 0, 300 and 900 equals three batches of one level each."""
    embeds, noise = torch.randn(2, 3, generator.embed_dim)
    ours = generator.class_labels(embeds, torch.tensor([0, 300, 900]), noise)
    for i, level in enumerate((0, 300, 900)):
        theirs = pipeline.noise_image_embeddings(embeds[i : i + 1], noise_level=level, noise=noise[i : i + 1])
        assert_close(ours[i : i + 1], theirs.detach(), rtol=0, atol=1e-6)


def remade(generator: Unclip, **changes: object) -> Unclip:
    """The same generator with other parts."""
    names = ("unet", "vae", "scheduler", "image_noising_scheduler", "mean", "std", "prompt_embeds")
    parts = {name: getattr(generator, name) for name in (*names, "empty_prompt_embeds", "normalise")}
    return Unclip(**{**parts, **changes})


def test_without_the_normaliser_the_condition_is_the_pipelines_with_none(generator, pipeline) -> None:
    """normalise=False equals noise_image_embeddings under mean 0 and deviation 1, and differs from True."""
    embeds, noise = torch.randn(2, 3, generator.embed_dim)
    ours = remade(generator, normalise=False).class_labels(embeds, torch.full((3,), 400), noise)
    noised = pipeline.image_noising_scheduler.add_noise(embeds, noise, torch.full((3,), 400))
    assert torch.equal(ours[:, : generator.embed_dim], noised)
    assert not torch.allclose(ours, generator.class_labels(embeds, torch.full((3,), 400), noise))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noising_and_target_equal_the_scheduler_and_the_formula(generator, prediction_type: str) -> None:
    """Both prediction types against diffusers' scheduler and against the formula written out."""
    scheduler = DDPMScheduler.from_config(generator.scheduler.config, prediction_type=prediction_type)
    ours = remade(generator, scheduler=scheduler)
    latents, noise = torch.randn(2, 5, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 400, 800, 999])
    signal = scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    spread = (1 - scheduler.alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
    assert_close(ours.add_noise(latents, noise, timesteps), signal * latents + spread * noise)
    formula = noise if prediction_type == "epsilon" else signal * noise - spread * latents
    assert_close(ours.wanted(latents, noise, timesteps), formula)


def test_parts_that_do_not_fit_are_named(generator) -> None:
    """A prediction type without a formula, and parts of other checkpoints, are UserErrors that say what is wrong."""
    dim = generator.embed_dim
    wrong: dict[str, dict[str, object]] = {
        "'sample'; training needs one of epsilon, v_prediction": {"scheduler": DDPMScheduler(prediction_type="sample")},
        f"class labels of {2 * dim} numbers and the normaliser gives 2 x 768": {"mean": torch.zeros(1, 768)},
        "latents of 4 channels and the VAE gives 3": {
            "vae": AutoencoderKL(latent_channels=3, norm_num_groups=8, block_out_channels=(8,))
        },
        "text of width 32 and the text encoder gives 40": {"prompt_embeds": torch.zeros(1, 24, 40)},
        "image_px must be a multiple of 4, the VAE's step, got 34": {"image_px": 34},
    }
    for message, changes in wrong.items():
        with pytest.raises(UserError, match=re.escape(message)):
            remade(generator, **changes)


def test_statistics_stay_frozen_through_to(generator) -> None:
    """After .to(), no parameter of the generator wants a gradient and the normaliser has none at all."""
    generator.to("cpu", torch.float32)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert not {"mean", "std"} & dict(generator.named_parameters()).keys()


def test_prediction_equals_the_pipelines_unet(generator, pipeline) -> None:
    """Our forward is the pipeline's U-Net under the pipeline's own encoding of the empty prompt."""
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    labels = torch.randn(2, 2 * generator.embed_dim)
    with torch.no_grad():
        prompt, _ = pipeline.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
        theirs = pipeline.unet(latents, timesteps, prompt.expand(2, -1, -1), class_labels=labels).sample
        told = Cond(vector=labels, sequence=generator.prompt_embeds.expand(2, -1, -1))
        assert_close(generator.at(latents, timesteps, told), theirs)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("noise_level", [0, 300])
def test_sampling_equals_the_pipelines_call(generator, pipeline, guidance_scale: float, noise_level: int) -> None:
    """The same embeddings and the same random generator give the pipeline's own images, three at once."""
    embeds = torch.randn(3, generator.embed_dim)
    how = {"guidance_scale": guidance_scale, "noise_level": noise_level}
    ours = generator.sample(Cond(vector=embeds), torch.Generator().manual_seed(5), sampling_steps=3, **how)
    rng = torch.Generator().manual_seed(5)
    theirs = pipeline(
        image_embeds=embeds, prompt=[""] * 3, generator=rng, num_inference_steps=3, output_type="pt", **how
    ).images
    assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-6)
    other = generator.sample(Cond(vector=embeds), torch.Generator().manual_seed(6), sampling_steps=3, **how)
    assert not torch.allclose(ours, other)


def test_pipeline_draws_from_a_picture(pipeline) -> None:
    """diffusers itself runs the whole directory on a PIL image: feature extractor, image encoder, all."""
    drawn = pipeline(image=Image.new("RGB", (32, 32), "red"), num_inference_steps=2).images[0]
    assert drawn.size == (32, 32)


def test_hugging_face_tower_gives_the_same_embedding(tiny) -> None:
    """The converted image tower and open_clip's agree within 1e-5."""
    clip = load_clip(tiny.backbones / "clip")
    pixel_values = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        theirs = to_hugging_face_vision(clip)(pixel_values).image_embeds
        assert_close(theirs, clip.model.encode_image(pixel_values), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "fits"), [(768, "unCLIP-L"), (1024, "unCLIP-H"), (1152, "--method=align")])
def test_width_that_does_not_fit_is_named(generator, width: int, fits: str) -> None:
    """An embedding of another width is refused with both widths, and with what would fit it."""
    generator.check_fits(generator.embed_dim)
    with pytest.raises(UserError, match=f"{width} numbers and the generator understands {generator.embed_dim}.*{fits}"):
        generator.check_fits(width)


def test_tokenizer_is_open_clips(tiny, pipeline) -> None:
    """Hugging Face's tokenizer in the directory gives open_clip's token ids, up to the padding."""
    texts = ["a red circle above a ball", "one hollow moon, far away", ""]
    theirs = load_clip(tiny.backbones / "clip").tokenize(texts)
    for text, row in zip(texts, theirs.tolist(), strict=True):
        assert pipeline.tokenizer(text).input_ids == [number for number in row if number]
