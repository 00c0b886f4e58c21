"""DIVA's condition (arXiv 2407.20171), as its code has it for each backbone: against naive losses, and at full size."""

import dataclasses
import itertools

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import linear

from tests.rows import NOISE, batches, prepare, run
from tests.toy_clips import model_of
from tests.unit.test_full_size_encoders import ROOT, encoder_of
from un2clip.config import build, merge, read_params, read_yaml
from un2clip.datasets.loader import to_device
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError
from un2clip.methods.conditions import ConditionConfig, DenseConfig, new_condition
from un2clip.methods.features import Encoder
from un2clip.models.converting import architecture_config, new_model
from un2clip.planning.published import new_generator

META = torch.device("meta")
CONDITIONS = build(ConditionConfig, read_params(ROOT / "params.yaml")["finetune"]["conditions"], "conditions")
#: As docs/methods.md has them: overlay of the encoder -> prompt, share, window; and length of what the U-Net is told.
CHOICES = {
    "openai-vit-l-14": ("tokens", 0.0, 1, 77),
    "openai-vit-l-14-336": ("tokens", 0.0, 1, 77),
    "metaclip-l": ("mean", 0.0, 1, 257),
    "metaclip-h": ("mean", 0.0, 1, 257),
    "dfn-h": ("mean", 0.0, 1, 257),
    "dfn-h-378": ("mean", 0.5, 1, 1 + 364),
    "siglip-so400m-224": ("mean", 0.0, 6, 1 + 42),
    "siglip-so400m-384": ("mean", 0.0, 10, 1 + 72),
}


def with_dense(tiny, **dense: object):
    return dataclasses.replace(tiny, params=merge(tiny.params, {"finetune": {"conditions": {"dense": dense}}}))


@pytest.mark.parametrize(
    ("dense", "length"),
    [
        ({}, 24),
        ({"prompt": "mean"}, 17),
        ({"prompt": "mean", "share": 0.5}, 9),
        ({"prompt": "mean", "window": 3}, 6),
        ({"prompt": "mean", "share": 0.5, "window": 3}, 3),
    ],
)
def test_the_loss_is_the_naive_one(tiny, dense: dict, length: int) -> None:
    """Sample by sample: ln_post and the projection on all tokens, one linear map, the prompt added, epsilon or v."""
    clip, objective, _ = prepare(with_dense(tiny, **dense), "diva")
    visual, decoder, condition = clip.model.visual, objective.decoder, objective.condition
    rng = torch.Generator().manual_seed(1)
    images, target = torch.randn(3, 3, 32, 32, generator=rng), torch.randn(3, *decoder.target_shape, generator=rng)
    sample = decoder.draw(3, rng, NOISE) | condition.draw(3, rng)
    found = objective({"pixel_values": images, "target": target}, sample)["diffusion_loss"]

    visual.output_tokens = True
    pooled, tokens = visual(images)  # the tokens after ln_post, before the projection
    prompt = decoder.prompt_embeds[0]
    for i in range(3):
        local = [token @ visual.proj for token in tokens[i]]
        if "patch" in sample:
            local = [local[int(number)] for number in sample["patch"][i]]
        window = dense.get("window", 1)
        local = [sum(local[start : start + window]) / window for start in range(0, len(local) - window + 1, window)]
        mapped = [linear(token, condition.map.weight, condition.map.bias) for token in (pooled[i], *local)]
        base = list(prompt) if not dense else [sum(prompt) / len(prompt)] * len(mapped)
        told = torch.stack([a + b for a, b in zip(base, mapped, strict=True)])
        assert len(told) == length
        time, noise = sample["timesteps"][i], sample["noise"][i]
        kept = decoder.scheduler.alphas_cumprod[time]
        noisy = kept.sqrt() * target[i] + (1 - kept).sqrt() * noise
        wanted = {
            "epsilon": noise,
            "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * target[i],
        }[decoder.scheduler.config.prediction_type]
        predicted = decoder.unet(noisy[None], time[None], encoder_hidden_states=told[None]).sample[0]
        torch.testing.assert_close(found[i], (predicted - wanted).square().mean(), rtol=1e-5, atol=1e-6)


def test_same_seed_same_patches_and_each_noise_sample_has_its_own(tiny) -> None:
    """The patches come from the step's random numbers, uniform, with replacement."""
    _, objective, _ = prepare(tiny, "diva")
    draw = objective.condition.draw
    first, again = (draw(400, torch.Generator().manual_seed(3))["patch"] for _ in range(2))
    rng = torch.Generator().manual_seed(3)
    assert torch.equal(first, again) and not torch.equal(draw(400, rng)["patch"], draw(400, rng)["patch"])
    counts = torch.bincount(first.flatten(), minlength=16)
    assert len(counts) == 16 and (counts - counts.float().mean()).abs().max() < 5 * counts.float().mean().sqrt()
    assert any(len(row.unique()) < len(row) for row in first)


def test_a_dropped_condition_of_another_length_is_the_empty_prompts_mean(tiny) -> None:
    """The U-Net is then told the mean of the empty prompt at every place."""
    _, objective, _ = prepare(with_dense(tiny, prompt="mean"), "diva")
    decoder, condition = objective.decoder, objective.condition
    features = objective.encoder(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    cond = condition(features, {})
    told = decoder.told(cond, {"keep": torch.tensor([True, False])}).sequence
    assert torch.equal(told[0], cond.sequence[0])
    torch.testing.assert_close(told[1], decoder.empty_prompt_embeds.mean(dim=1).expand(17, -1))


def test_a_siglip_tells_its_pooled_token_and_means_of_raw_patches() -> None:
    """timm's tower has no projection: its normed patches are of the embedding's width, and are taken as they are."""
    clip = model_of("siglip").eval()
    features = Encoder(clip.visual, "projected")(torch.zeros(2, 3, 32, 32))
    trunk = clip.visual.trunk
    assert torch.equal(features.tokens, trunk.forward_features(torch.zeros(2, 3, 32, 32)))
    assert features.tokens.shape[2] == features.pooled.shape[1] == trunk.num_features


@pytest.mark.parametrize("overlay", CHOICES)
def test_full_size_shapes(overlay: str) -> None:
    """A step of SD-2.1-base's U-Net, told by a published encoder: lengths, the map's size, gradients into the tower."""
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{overlay}.yaml"])
    dense = DenseConfig(**params["finetune"]["conditions"]["dense"])
    *choice, length = CHOICES[overlay]
    assert (dense.prompt, dense.share, dense.window) == tuple(choice)
    with META:
        unclip = new_generator(768)
    unclip.unet.class_embedding = None
    unclip.unet.register_to_config(class_embed_type=None)
    prompt = torch.zeros(1, 77, 1024, device=META)
    decoder = TextToImage(
        unet=unclip.unet,
        vae=unclip.vae,
        scheduler=DDPMScheduler(prediction_type="epsilon"),
        prompt_embeds=prompt,
        empty_prompt_embeds=prompt,
        image_px=512,
    )
    with META:
        config = architecture_config(encoder_of(overlay).architecture)["model_cfg"]
        visual = new_model(config).visual
    side = config["vision_cfg"]["image_size"]
    features = Encoder(visual, "projected")(torch.zeros(2, 3, side, side, device=META))
    condition = new_condition("dense", features, decoder, 0, dataclasses.replace(CONDITIONS, dense=dense))
    width = features.pooled.shape[1]
    assert [tuple(p.shape) for p in condition.map.parameters()] == [(1024, width), (1024,)]
    noise = to_device(decoder.draw(2, torch.Generator(), NOISE) | condition.draw(2, torch.Generator()), META)
    told = condition(features, noise)
    assert told.sequence.shape == (2, length, 1024) and decoder.target_shape == (4, 64, 64)
    decoder.loss(torch.zeros(2, 4, 64, 64, device=META), told, noise)["diffusion_loss"].mean().backward()
    assert next(visual.parameters()).grad is not None or any(p.grad is not None for p in visual.parameters())


def test_what_does_not_fit_is_said(tiny) -> None:
    """A window of more patches than there are, numbers that contradict each other, tokens of another width."""
    with pytest.raises(UserError, match="averages 17 patches, and the encoder gives 16"):
        prepare(with_dense(tiny, prompt="mean", window=17), "diva")
    with pytest.raises(UserError, match="with tokens they must be 0 and 1, got 0.5 and 1"):
        prepare(with_dense(tiny, share=0.5), "diva")
    _, objective, _ = prepare(tiny, "diva")
    features = objective.encoder(torch.zeros(1, 3, 32, 32))
    other = dataclasses.replace(features, tokens=features.tokens[..., :-1])
    dim = features.pooled.shape[1]
    with pytest.raises(UserError, match=f"this encoder's have {dim} and {dim - 1} numbers"):
        mean = DenseConfig(prompt="mean", share=0.0, window=1)
        new_condition("dense", other, objective.decoder, 0, dataclasses.replace(CONDITIONS, dense=mean))


def test_gradients_that_are_added_are_the_recipes_rate_and_norm(tiny) -> None:
    """DIVA back-propagates each of two losses, clips the sum at 1 and steps at 1e-4; the loop takes their mean. So the
    overlay's numbers, twice the rate and half the norm, give the same weights, clipped or not."""
    (recipe,) = [read_yaml(ROOT / "configs/diva.yaml")["finetune"]["phases"]["diva"]]
    assert recipe["lr"] == {"encoder": 2 * 1e-4, "condition": 2 * 1e-4} and recipe["clip_grad_norm"] == 1.0 / 2
    for scale in (1.0, 1e3):  # the second is never clipped
        lr, norm = {name: 1e3 * rate for name, rate in recipe["lr"].items()}, scale * recipe["clip_grad_norm"]
        clip, _, _ = run(tiny, "diva", steps=2, warmup_steps=0, noise=NOISE, lr=lr, clip_grad_norm=norm)
        mine, objective, _ = prepare(tiny, "diva")
        tower = Encoder(mine.model.visual.requires_grad_(True).train(), "projected")
        parameters = [*tower.parameters(), *objective.condition.requires_grad_(True).parameters()]
        optimizer, rng = torch.optim.SGD(parameters, lr=1e3 * 1e-4, momentum=0.9), torch.Generator().manual_seed(0)
        for batch in itertools.islice(batches(), 2):
            optimizer.zero_grad()
            for _ in range(2):
                sampled = objective.decoder.draw(8, rng, NOISE) | objective.condition.draw(8, rng)
                told = objective.condition(tower(batch["pixel_values"]), sampled)
                objective.decoder.loss(batch["target"], told, sampled)["diffusion_loss"].mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, scale * 1.0)
            optimizer.step()
        for name, value in mine.model.visual.state_dict().items():
            torch.testing.assert_close(clip.model.visual.state_dict()[name], value, rtol=1e-5, atol=1e-6)
