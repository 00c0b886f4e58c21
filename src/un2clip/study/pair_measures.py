"""What is measured on a laptop pair, before any encoder is tuned with it: is the pair worth inverting?

All of it on scenes of the world's held-out half, which neither the CLIP nor the generator has seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import sem
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets.loader import generator_view
from un2clip.decoders import Cond, NoiseConfig, Unclip
from un2clip.models.clip import Clip
from un2clip.study.judge import AT_ONCE, right, train_judge
from un2clip.world import scenes as world
from un2clip.world.scenes import ATTRIBUTES, COLUMN, Ints
from un2clip.world.writing import PATTERNS, draw_pairs

NAMED = ("object", "colour")  # what a caption nearly always names
DETAILS = tuple(name for name in ATTRIBUTES if name not in NAMED)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a pair must reach before any encoder is tuned with it.

    Attributes:
        vae_db: of the VAE alone, dB.
        drawn_object, drawn_colour: rightly named in drawn images at the best guidance, %.
        heard: attributes that the generator hears at every noise level.
        standard_errors: of the loss's difference, from which on an attribute is heard.
        told_apart: types whose statements are told apart.
        cosine: of two statements, below which they are.
        zeroshot: %.
        pairs: lowest and highest, %.
    """

    vae_db: float
    drawn_object: float
    drawn_colour: float
    heard: int
    standard_errors: float
    told_apart: int
    cosine: float
    zeroshot: float
    pairs: tuple[float, ...]

    def __post_init__(self) -> None:
        at_least(self, 0, "heard", "told_apart")
        if len(self.pairs) != 2:
            raise ValueError(f"pairs must be the lowest and the highest, got {list(self.pairs)}")


@dataclass(frozen=True, kw_only=True)
class PairMeasures:
    """The section `pair` of world.yaml.

    Attributes:
        scenes: held-out scenes on which the VAE is measured; and for each attribute, those that have a twin.
        statements: pairs of statements for each type.
        noise_levels: at which a twin's embedding is held against the own one.
        drawn: images drawn from embeddings, at each guidance.
        guidance_scales: of these drawings.
        sampling_steps: of each.
        classifier_scenes: training scenes from which the judge of the drawings learns.
        classifier_epochs: over them.
        classifier_lr: AdamW's rate, falling by a cosine.
        plain: probability that a detail has its plain value, as of shapes.
        wanted: what of it a pair must reach.
    """

    scenes: int
    statements: int
    noise_levels: tuple[int, ...]
    drawn: int
    guidance_scales: tuple[float, ...]
    sampling_steps: int
    classifier_scenes: int
    classifier_epochs: int
    classifier_lr: float
    plain: float
    wanted: Wanted

    def __post_init__(self) -> None:
        at_least(self, 2, "scenes", "drawn", "classifier_scenes")
        at_least(self, 1, "statements", "sampling_steps", "classifier_epochs")
        world.check_plain(self.plain)
        if min(self.noise_levels, default=0) < 0:
            raise ValueError(f"noise_levels must be at least 0, got {list(self.noise_levels)}")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Scenes as each network sees them: pixel_values (N, 3, P, P) for the CLIP, images (N, 3, S, S) for the VAE."""

    pixel_values: Tensor
    images: Tensor


def see(clip: Clip, generator: Unclip, pictures: np.ndarray) -> Drawn:
    """(N, S, S, 3) uint8 as pixel_values and images."""
    view, read = generator_view(generator.image_px), [Image.fromarray(each) for each in pictures]
    return Drawn(
        pixel_values=torch.stack([clip.preprocess(image) for image in read]),
        images=torch.stack([view(image) for image in read]),
    )


def twins(rng: np.random.Generator, attribute: str, n: int, plain: float) -> tuple[Ints, Ints]:
    """n held-out scenes, and each with another value of one attribute and nothing else changed."""
    kept = [np.zeros((0, len(ATTRIBUTES)), np.int64) for _ in range(2)]
    while len(kept[0]) < n:
        own = world.draw(rng, 4 * n, plain=plain, heldout=True)
        other = own.copy()
        other[:, COLUMN[attribute]] = rng.integers(len(ATTRIBUTES[attribute]), size=len(other))
        other = world.canonical(other)
        differing = own != other
        good = differing[:, COLUMN[attribute]] & (differing.sum(axis=1) == 1)
        kept = [np.concatenate([before, new[good]]) for before, new in zip(kept, (own, other), strict=True)]
    return kept[0][:n], kept[1][:n]


@torch.no_grad()
def vae_decibels(generator: Unclip, images: Tensor) -> float:
    """Peak signal-to-noise ratio of the VAE alone, dB, the mean over images (N, 3, S, S) whose range is 2."""
    parts = images.split(AT_ONCE)
    errors = torch.cat([(generator.decode(generator.encode(x)) - x).square().mean(dim=(1, 2, 3)) for x in parts])
    return float((10 * torch.log10(4 / errors)).mean())


def held_images(clip: Clip, generator: Unclip, seed: int, params: PairMeasures) -> Tensor:
    """Held-out scenes (N, 3, S, S), as the VAE sees them."""
    drawn = world.draw(np.random.default_rng(seed), params.scenes, plain=params.plain, heldout=True)
    return see(clip, generator, world.render(np.random.default_rng(seed), drawn, generator.image_px)).images


@torch.no_grad()
def statement_cosines(clip: Clip, seed: int, params: PairMeasures) -> dict[str, float]:
    """Mean cosine of the two statements of a pair, for each type of MMVP-VLM."""
    rng, found = np.random.default_rng(seed), {}
    for pattern, attributes in PATTERNS.items():
        cosines = []
        for attribute in attributes:
            named = {COLUMN["object"], COLUMN["colour"], COLUMN[attribute]}
            sides = draw_pairs(rng, attribute, params.statements, params.plain)
            texts = [
                normalize(clip.embed_texts([world.describe(scene, named) for scene in side]), dim=1) for side in sides
            ]
            cosines.append((texts[0] * texts[1]).sum(dim=1))
        found[pattern] = float(torch.cat(cosines).mean())
    return found


@torch.no_grad()
def heard(clip: Clip, generator: Unclip, seed: int, params: PairMeasures) -> dict[str, dict[int, tuple[float, float]]]:
    """For each attribute and noise level: the diffusion loss told of the twin minus that told of the scene itself.

    Mean and standard error over scenes, in thousandths; both on the same noises and timesteps.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for number, attribute in enumerate(tqdm(DETAILS, unit="attribute", desc="twins")):
        sides = twins(np.random.default_rng([seed, number]), attribute, params.scenes, params.plain)
        own, other = (
            see(clip, generator, world.render(np.random.default_rng(seed), side, generator.image_px)) for side in sides
        )
        conds = [Cond(vector=clip.embed(each.pixel_values)) for each in (own, other)]
        target = torch.cat([generator.encode(part) for part in own.images.split(AT_ONCE)])
        found[attribute] = {}
        for level in params.noise_levels:
            noise = NoiseConfig(
                timesteps=(0, generator.num_timesteps - 1),
                timesteps_drawn="stratified",
                noise_level=(level, level),
                condition_dropout=None,
                time_scale=0.0,
            )
            sample = generator.draw(len(target), torch.Generator().manual_seed(seed), noise)
            losses = [torch.cat(list(_losses(generator, target, cond, sample))) for cond in conds]
            difference = 1000 * (losses[1] - losses[0]).double().numpy()
            found[attribute][level] = (float(difference.mean()), float(sem(difference)))
    return found


@torch.no_grad()
def turned(clip: Clip, generator: Unclip, seed: int, params: PairMeasures) -> dict[str, dict[int, float]]:
    """For each attribute and noise level, how far noise turns the loss's wish towards the text's direction.

    For linear-Gaussian embeddings of covariance C, told with noise of deviation sigma, the loss falls fastest along
    (C + sigma^2 I)^-1 d, where d is the step from a scene to its twin; the text wants the step between their
    statements. Mean cosine of the two over the twins, all in the normaliser's units.
    """
    found: dict[str, dict[int, float]] = {}
    cumulative = generator.image_noising_scheduler.alphas_cumprod.double()
    scenes = world.draw(np.random.default_rng(seed), 4 * params.scenes, plain=params.plain, heldout=True)
    seen = see(clip, generator, world.render(np.random.default_rng(seed), scenes, generator.image_px))
    covariance = torch.cov(_normalised(clip, generator, seen).T)
    for number, attribute in enumerate(DETAILS):
        sides = twins(np.random.default_rng([seed, number]), attribute, params.statements, params.plain)
        words = {COLUMN["object"], COLUMN["colour"], COLUMN[attribute]}
        embeds, texts = [], []
        for side in sides:
            pictures = world.render(np.random.default_rng(seed), side, generator.image_px)
            embeds.append(_normalised(clip, generator, see(clip, generator, pictures)))
            texts.append(normalize(clip.embed_texts([world.describe(scene, words) for scene in side]), dim=1).double())
        wanted, step = (texts[1] - texts[0]) * generator.std.double(), embeds[1] - embeds[0]
        differing = wanted.norm(dim=1) > 0  # "none" and "plain" are not always a word
        found[attribute] = {}
        for level in params.noise_levels:
            variance = (1 - cumulative[level]) / cumulative[level]
            wish = torch.linalg.solve(covariance + variance * torch.eye(len(covariance)), step.T).T
            found[attribute][level] = float(cosine_similarity(wish, wanted, dim=1)[differing].mean())
    return found


def _normalised(clip: Clip, generator: Unclip, seen: Drawn) -> Tensor:
    return ((clip.embed(seen.pixel_values) - generator.mean) / generator.std).double()


def _losses(generator: Unclip, target: Tensor, cond: Cond, sample: Mapping[str, Tensor]) -> Any:
    assert cond.vector is not None
    for start in range(0, len(target), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        own = {name: value[part] for name, value in sample.items()}
        (values,) = generator.loss(target[part], Cond(vector=cond.vector[part]), own).values()
        yield values


def named(
    clip: Clip, generator: Unclip, seed: int, params: PairMeasures
) -> tuple[dict[str, float], dict[float, dict[str, float]]]:
    """What the judge names rightly, in %: on real held-out scenes; and at each guidance on what the generator draws."""
    rng = np.random.default_rng(seed)
    sets = [(params.classifier_scenes, False), (params.drawn, True)]
    drawn = [world.draw(rng, n, plain=params.plain, heldout=heldout) for n, heldout in sets]
    learn, held = (see(clip, generator, world.render(rng, each, generator.image_px)) for each in drawn)
    labels = [torch.tensor(each[:, [COLUMN[name] for name in NAMED]]) for each in drawn]
    judge = train_judge(
        learn.images, labels[0], NAMED, seed=seed, epochs=params.classifier_epochs, lr=params.classifier_lr
    )
    cond = Cond(vector=clip.embed(held.pixel_values))
    pictures = {
        scale: generator.sample(
            cond,
            torch.Generator().manual_seed(seed),
            sampling_steps=params.sampling_steps,
            guidance_scale=scale,
            noise_level=0,
        )
        for scale in params.guidance_scales
    }
    return right(judge, held.images, labels[1]), {s: right(judge, x, labels[1]) for s, x in pictures.items()}


def conditions(measured: Mapping[str, Any], levels: Sequence[int], wanted: Wanted) -> dict[str, bool]:
    """What a pair must fulfil, and whether this one does."""
    clear = {
        level: sum(each[level][0] >= wanted.standard_errors * each[level][1] for each in measured["heard"].values())
        for level in levels
    }
    best = {name: max(each[name] for each in measured["drawn"].values()) for name in NAMED}
    apart, (low, high) = sum(each < wanted.cosine for each in measured["statements"].values()), wanted.pairs
    return {
        f"the VAE keeps at least {wanted.vae_db:g} dB": measured["vae_db"] >= wanted.vae_db,
        f"drawn objects are named, at least {wanted.drawn_object:g} %": best["object"] >= wanted.drawn_object,
        f"drawn colours are named, at least {wanted.drawn_colour:g} %": best["colour"] >= wanted.drawn_colour,
        **{
            f"at noise level {level} at least {wanted.heard} of {len(DETAILS)} attributes are heard by "
            f"{wanted.standard_errors:g} standard errors": n >= wanted.heard
            for level, n in clear.items()
        },
        f"statements of a pair are told apart, cosine below {wanted.cosine:g} in {wanted.told_apart} of "
        f"{len(PATTERNS)} types": apart >= wanted.told_apart,
        f"zero-shot is at least {wanted.zeroshot:g} %": measured["zeroshot"] >= wanted.zeroshot,
        f"pairs are between {low:g} and {high:g} %": low <= measured["pairs"] <= high,
    }
