"""DCR (arXiv 2603.04803): its loss against a naive one, its second view, and its shapes at full size."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn.functional import gelu, layer_norm

from tests.rows import FAST, NOISE, batches, prepare, run
from tests.unit.test_full_size_encoders import ROOT, encoder_of
from un2clip.config import build, merge, read_params
from un2clip.datasets import loader
from un2clip.datasets.augmenting import ViewConfig
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError
from un2clip.methods.conditions import new_condition
from un2clip.methods.contrast import Contrast
from un2clip.methods.features import Encoder
from un2clip.models.clip import load_clip
from un2clip.models.converting import architecture_config, new_model
from un2clip.planning.published import new_generator
from un2clip.stages.finetune_job import Finetune, Job

META = torch.device("meta")
VIEW = ViewConfig(jitter=(0.1, 0.1, 0.1, 0.05), flips=(0.5, 0.5), crop=(0.9, 1.0))


def with_contrast(tiny, **contrast: object):
    return dataclasses.replace(tiny, params=merge(tiny.params, {"finetune": {"contrast": contrast}}))


@pytest.mark.parametrize(("target", "corrupt"), [("velocity", ()), ("epsilon", ()), ("velocity", (1, 6))])
def test_the_loss_is_the_naive_one(tiny, target: str, corrupt: tuple[int, ...]) -> None:
    """Two groups of four, prediction by prediction; exponentials and logarithms as they stand in DCR's formula."""
    clip, objective, _ = prepare(with_contrast(tiny, target=target, temperature=0.1), "dcr")
    decoder, visual, rng = objective.decoder, clip.model.visual, torch.Generator().manual_seed(0)
    batch = next(batches(decoder.target_shape))
    batch["valid"] = torch.tensor([i not in corrupt for i in range(8)])
    sample = objective.draw(batch, 8, rng, NOISE)
    found = objective(batch, sample)

    prompt, (norm, first, _, second) = decoder.prompt_embeds, objective.condition.map

    def told(image: torch.Tensor) -> torch.Tensor:
        hidden = layer_norm(visual(image[None]), norm.normalized_shape, norm.weight, norm.bias)
        mapped = gelu(hidden @ first.weight.T + first.bias) @ second.weight.T + second.bias
        return prompt + mapped[:, None].expand(-1, prompt.shape[1], -1)

    def predicted(i: int, image: torch.Tensor) -> torch.Tensor:
        unet, time = decoder.unet, sample["timesteps"][i]
        kept = decoder.scheduler.alphas_cumprod[time]
        noisy = kept.sqrt() * batch["target"][i] + (1 - kept).sqrt() * sample["noise"][i]
        return unet(noisy[None], time[None], encoder_hidden_states=told(image)).sample.flatten()

    def likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.exp(one @ other / (one.norm() * other.norm()) / 0.1)

    assert prompt.equal(decoder.empty_prompt_embeds), "DCR's prompt is empty"
    for i in set(range(8)) - set(corrupt):
        anchor, noise = predicted(i, batch["pixel_values"][i]), sample["noise"][i]
        kept = decoder.scheduler.alphas_cumprod[sample["timesteps"][i]]
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * batch["target"][i]
        truth = {"velocity": velocity, "epsilon": noise}[target].flatten()
        positives = [likeness(anchor, predicted(i, batch["view"][i])), likeness(anchor, truth)]
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        others = [k for k in group if k != i and k not in corrupt]
        total = sum(positives) + sum(likeness(anchor, predicted(i, batch["pixel_values"][k])) for k in others)
        wanted = -sum(torch.log(each / total) for each in positives) / 2
        torch.testing.assert_close(found["contrast"][i], wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(found["loss"], found["contrast"])


def test_no_sample_sees_another_group(tiny) -> None:
    """So accumulation and processes, which cut between groups, change nothing; and gradients reach all that trains."""
    _, objective, _ = prepare(tiny, "dcr")
    objective.requires_grad_(True)
    batch = next(batches(objective.decoder.target_shape))
    sample = objective.draw(batch, 8, torch.Generator().manual_seed(0), NOISE)
    whole = objective(batch, sample)["loss"]
    halves = [slice(0, 4), slice(4, 8)]
    parts = [objective(loader.narrow(batch, half), loader.narrow(sample, half))["loss"] for half in halves]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    whole.mean().backward()
    for part in ("encoder", "condition"):
        assert all(each.grad is not None and each.grad.any() for each in objective.parts()[part].parameters())


def test_training_lowers_the_loss(tiny) -> None:
    """On the noise and images of its first batch, over both phases."""
    _, before, _ = prepare(tiny, "dcr")
    _, after, history = run(tiny, "dcr", steps=6, warmup_steps=0, **FAST)
    batch = next(batches(before.decoder.target_shape))
    sample = before.draw(batch, 8, torch.Generator().manual_seed(0), NOISE)
    losses = [each(batch, sample)["loss"].mean().item() for each in (before, after)]
    assert losses[1] < losses[0] and [set(row) >= {"loss", "contrast"} for row in history] == [True] * 12


def test_the_second_view_is_by_seed_epoch_and_sample(tiny) -> None:
    """The encoder's first view and the decoder's are as ever; torch's own state is left alone."""
    view = loader.generator_view(32)
    plain = loader.open_split(tiny.shards, "train", load_clip(tiny.backbones / "clip").preprocess, view)
    reader = dataclasses.replace(plain, second=VIEW, seed=1)
    index, later = loader.SampleIndex(0, 3, epoch=0), loader.SampleIndex(0, 3, epoch=1)
    state = torch.get_rng_state()
    first, _, again = reader[index], reader[loader.SampleIndex(1, 0)], reader[index]
    assert torch.equal(torch.get_rng_state(), state) and "view" not in plain[index]
    assert torch.equal(first["view"], again["view"]) and first["view"].shape == first["pixel_values"].shape
    for name in ("pixel_values", "images"):
        assert torch.equal(first[name], plain[index][name])
    others = (first["pixel_values"], reader[later]["view"], dataclasses.replace(reader, seed=2)[index]["view"])
    assert all(not torch.equal(first["view"], other) for other in others)


def test_the_second_view_is_what_its_numbers_say() -> None:
    """Flips in the shares that are asked for, colours within their range, and nothing at all where all are nothing."""
    picture = Image.new("RGB", (64, 64), (100, 100, 100))
    picture.paste((200, 40, 40), (0, 0, 32, 32))
    none = ViewConfig(jitter=(0.0,) * 4, flips=(0.0, 0.0), crop=(1.0, 1.0))
    assert none.second_view(picture, 0).tobytes() == picture.tobytes()
    flipped = dataclasses.replace(none, flips=(0.5, 0.25))
    corners = [flipped.second_view(picture, seed) for seed in range(400)]
    left = [each.getpixel((5, 5))[0] == 200 or each.getpixel((5, 60))[0] == 200 for each in corners]
    top = [each.getpixel((5, 5))[0] == 200 or each.getpixel((60, 5))[0] == 200 for each in corners]
    for found, share in ((left, 0.5), (top, 0.75)):
        assert abs(sum(found) / 400 - share) < 4 * math.sqrt(share * (1 - share) / 400)
    bright = dataclasses.replace(none, jitter=(0.1, 0.0, 0.0, 0.0))
    values = [bright.second_view(picture, seed).getpixel((60, 60))[0] for seed in range(200)]
    assert 90 <= min(values) < 93 and 107 < max(values) <= 110


def test_full_size_shapes() -> None:
    """Two images of a step of SD-2.1-base's U-Net at the recipe's 224 px, told by a published encoder of 336 px."""
    overlay = "openai-vit-l-14-336"
    params = read_params(ROOT / "params.yaml", [ROOT / f"configs/{name}.yaml" for name in ("dcr", overlay)])
    numbers = build(Finetune, params["finetune"], "finetune")
    assert numbers.contrast.view == VIEW and numbers.contrast.group == numbers.compute.max_per_device == 16
    config = architecture_config(encoder_of(overlay).architecture)["model_cfg"]
    side = config["vision_cfg"]["image_size"]
    with META:
        unclip = new_generator(768)
    unclip.unet.class_embedding = None
    unclip.unet.register_to_config(class_embed_type=None)
    prompt = torch.zeros(1, 77, 1024, device=META)
    texts = {"prompt_embeds": prompt, "empty_prompt_embeds": prompt}
    parts = {"unet": unclip.unet, "vae": unclip.vae, "scheduler": DDPMScheduler(prediction_type="epsilon")}
    decoder = TextToImage(**parts, **texts, image_px=224)
    with META:
        visual = new_model(config).visual
        condition = new_condition("pooled-added", Encoder(visual)(torch.zeros(2, 3, side, side)), decoder, 0)
        two = dataclasses.replace(numbers.contrast, group=2, target="epsilon")
        objective = Contrast(visual, condition, decoder, {}, trains_encoder=True, refers=False, config=two)
        sample = {"timesteps": torch.zeros(2, dtype=torch.int64), "noise": torch.zeros(2, *decoder.target_shape)}
        seen = {name: torch.zeros(2, 3, side, side) for name in ("pixel_values", "view")}
        valid = torch.ones(2, dtype=torch.bool)
        assert decoder.target_shape == (4, 28, 28)
        terms = objective({**seen, "target": torch.zeros(2, 4, 28, 28), "valid": valid}, sample)
    terms["loss"].mean().backward()
    assert terms["contrast"].shape == (2,) and any(each.grad is not None for each in visual.parameters())
    widths = [tuple(each.weight.shape) for each in (condition.map[1], condition.map[3])]
    assert widths == [(1024, 768), (1024, 1024)]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": 0}, "finetune.contrast.temperature must be above 0, got 0.0"),
        ({"group": 1}, "finetune.contrast.group must be at least 2, got 1"),
        ({"target": "v"}, "finetune.contrast.target must be one of velocity, epsilon, got 'v'"),
        ({"view": {"flips": [0.5]}}, "finetune.contrast.view.flips must be two probabilities, got [0.5]"),
        ({"view": {"jitter": [0.1, 0.1, 0.1, 0.6]}}, "finetune.contrast.view.jitter must be four numbers"),
        ({"view": {"crop": [0.0, 1.0]}}, "finetune.contrast.view.crop must be a lowest and a highest share above 0"),
    ],
)
def test_numbers_that_cannot_be_are_named(tiny, numbers: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(with_contrast(tiny, **numbers), "dcr")
    assert str(caught.value).startswith(message)


def test_a_group_that_does_not_fit_is_said_before_a_step(tiny) -> None:
    """Batches of eight hold no whole groups of three."""
    with pytest.raises(
        UserError, match=r"a contrast group of 3 samples must fit .* a local batch \(8\) must hold whole"
    ):
        run(with_contrast(tiny, group=3), "dcr")


def test_other_numbers_begin_another_training_and_leave_the_first_ones_state(tiny, tmp_path) -> None:
    """A state has a folder by all that decides the result, contrast, faults and times too, and not by how it runs."""
    paths = dict.fromkeys(("shards", "backbones", "latents", "encoder"), tmp_path)

    def folder(**changes: object):
        params = build(Finetune, merge(tiny.params["finetune"], changes), "finetune")
        job = Job(params=params, method="dcr", seed=0, device="cpu", checkpoints=str(tmp_path), **paths)
        return job.state_folder({})

    changes: list[dict[str, object]] = [
        {"contrast": {"temperature": 0.2}},
        {"contrast": {"view": {"crop": [0.8, 1.0]}}},
        {"faults": {"encoder": True}},
        {"phases": {"genhancer-1": {"noise": {"time_scale": 0.5}}}},
        {"phases": {"dcr-2": {"steps": 7}}},
    ]
    assert len({folder(), *(folder(**each) for each in changes)}) == 1 + len(changes)
    assert folder(compute={"workers": 3}) == folder(phases={"tune": {"crop": [1.0, 1.0]}}) == folder()
