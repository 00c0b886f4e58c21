"""Stage `diffusion_loss`: the label-free diagnostic.

How well can the generator denoise held-out images, given each encoder's embedding of them?
Both encoders meet the same images, noises and timesteps, so the difference is paired. The timesteps are
stratified: each image meets one from every bin of equal width, drawn uniformly within the bin.
"""

import functools
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import torch
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.datasets import loader
from un2clip.datasets.engine import Engine, at_once, run_tasks
from un2clip.datasets.latents import open_latents, read_cache
from un2clip.datasets.shards import digest
from un2clip.decoders import Cond, NoiseConfig, Unclip, load_generator
from un2clip.devices import pick_device
from un2clip.evidence.lineage import encoder_pair
from un2clip.evidence.scores import Item, Role, Scores
from un2clip.files.outputs import write_json
from un2clip.files.texts import read_json
from un2clip.models.clip import encoder_sha256, load_clip

matplotlib.use("Agg")


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """The section `diffusion_loss` of params.yaml."""

    images: int
    bins: int
    noise_level: int
    batch_size: int
    workers: int
    processes: int
    engine: Engine

    def __post_init__(self) -> None:
        at_least(self, 1, "images", "bins", "batch_size")
        at_least(self, 0, "workers", "noise_level", "processes")


def diffusion_loss(
    params: DiffusionLoss,
    *,
    seed: int,
    device: str,
    shards: Path,
    backbones: Path,
    latents: Path,
    encoder: Path,
    scores: Path,
) -> None:
    """Write reference.json and tuned.json (one item an image and bin) and diffusion_loss.png.

    Args:
        seed: of the table of noises and timesteps, the same for both encoders.
        device: auto, cpu or cuda.
        shards: its heldout/ is measured, at most `images` of it. It may be of a bucket.
        backbones: clip/ is the reference; unclip/ measures both, also for methods that trained their own. Without one
            nothing is measured, and the folder stays empty.
        latents: the cache of the VAE's latents, which may be empty.
        encoder: the tuned checkpoint.
        scores: folder of the two scores files and the plot.
    """
    names = {"shards": shards, "backbones": backbones, "latents": latents, "encoder": encoder, "scores": scores}
    diffusion_loss_knowing(params, (), seed=seed, device=device, **names)


def diffusion_loss_knowing(
    params: DiffusionLoss,
    known: Sequence[Scores],
    *,
    seed: int,
    device: str,
    shards: Path,
    backbones: Path,
    latents: Path,
    encoder: Path,
    scores: Path,
) -> None:
    """The same, where the reference's scores may be known: with the same numbers, seed, images and generator.

    Args:
        known: what an earlier call has in reference.json. They are written again, byte for byte, if they are of this
            reference, these images and this protocol; else it is measured.
    """
    if not (backbones / "unclip").is_dir():
        scores.mkdir(parents=True, exist_ok=True)
        print("diffusion_loss: there is no unCLIP to measure by")
        return
    processes = at_once(params.processes, params.engine, device)
    made = encoder_pair(backbones, encoder)
    _generator.cache_clear()  # another may lie in the same folder by now
    generator = _generator(backbones, "cpu" if processes > 1 else device)
    total = min(params.images, loader.count(shards, "heldout", at_least=1))
    bins = _bins(generator.num_timesteps, params)
    for noise in bins.values():
        generator.check(noise)
    protocol, made_in = f"fp32; {params.bins} bins of timesteps; noise level {params.noise_level}", read_cache(latents)
    if made_in.cached and made_in.precision != "fp32":
        protocol += f"; latents made in {made_in.precision}"
    described: dict[Role, Any] = {
        role: {"protocol": protocol, "data_sha256": digest(shards), "encoder_sha256": encoder_sha256(folder)}
        for role, _, folder in made
    }
    items: dict[Role, list[Item]] = {role: [] for role, _, _ in made}
    for each in known:
        if each.n == total * params.bins and described["reference"].items() <= vars(each).items():
            items["reference"] = list(each.items)
    unknown: tuple[Role, ...] = tuple(role for role in items if not items[role])
    batches, rng = -(-total // params.batch_size), torch.Generator().manual_seed(seed)
    bounds = [i * batches // min(processes, batches) for i in range(min(processes, batches) + 1)]
    beside = scores.resolve().parent  # which all nodes of a cluster see
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{scores.name}.") as folder:
        shares = list[Share]()
        for first, last in zip(bounds, bounds[1:], strict=False):
            first, last = first * params.batch_size, min(last * params.batch_size, total)
            state, to = rng.get_state().numpy().tobytes(), Path(folder) / f"{first}.json"
            shares.append(
                Share(
                    params=params, device=device, shards=shards, backbones=backbones, latents=latents,
                    encoders={role: path for role, _, path in made}, roles=unknown, first=first, last=last,
                    state=state, to=to,
                )
            )  # fmt: skip
            if last < total:  # what this share draws is drawn here too, so that the next begins where it ends
                for size in (min(params.batch_size, last - n) for n in range(first, last, params.batch_size)):
                    for noise in bins.values():
                        generator.draw(size, rng, noise)
        for _ in run_tasks(measure, shares, processes, params.engine, device):
            pass
        for share in shares:
            for role, measured in read_json(share.to).items():
                items[role] += [Item(**each) for each in measured]
    _generator.cache_clear()
    both = {
        role: Scores(
            benchmark="diffusion_loss",
            role=role,
            method=method,
            unit="mse",
            **described[role],
            items=tuple(items[role]),
        )
        for role, method, _ in made
    }
    for role, result in both.items():
        result.save(scores / f"{role}.json")
    _plot(both, scores / "diffusion_loss.png")
    print(f"diffusion_loss: reference {both['reference'].score:.5f}, tuned {both['tuned'].score:.5f} of {total} images")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some batches of the images, as they are handed to a worker.

    Attributes:
        encoders: role -> folder.
        roles: that are measured.
        first, last: of the held-out images, in their order.
        state: of the random numbers before the first.
        to: file that gets the items of each role.
    """

    params: DiffusionLoss
    device: str
    shards: Path
    backbones: Path
    latents: Path
    encoders: dict[Role, Path]
    roles: tuple[Role, ...]
    first: int
    last: int
    state: bytes
    to: Path

    def __str__(self) -> str:
        return f"images {self.first} to {self.last - 1}"


def measure(share: Share) -> None:
    """Measure some batches by both encoders."""
    params, where, rng = share.params, pick_device(share.device), torch.Generator()
    rng.set_state(torch.frombuffer(bytearray(share.state), dtype=torch.uint8))
    generator = _generator(share.backbones, share.device)
    clips = {role: load_clip(folder, where) for role, folder in share.encoders.items()}
    items: dict[Role, list[dict[str, Any]]] = {role: [] for role in share.roles}
    bins, view = _bins(generator.num_timesteps, params), loader.generator_view(generator.image_px)
    cached = open_latents(share.latents, share.shards, generator.vae_sha256())
    reader = loader.open_split(share.shards, "heldout", clips["reference"].preprocess, view, cached)
    indices = loader.batched(islice(loader.in_order(reader.sizes), share.first, share.last), params.batch_size)
    hidden = multiprocessing.parent_process() is not None  # of several the first that ends would say little
    with tqdm(
        total=share.last - share.first, unit="image", desc="diffusion_loss", mininterval=1, disable=hidden
    ) as progress:
        for batch in loader.strict(loader.read(reader, indices, params.workers)):
            target = generator.target(batch)
            conds = {role: Cond(vector=clips[role].embed(batch["pixel_values"], batch["keys"])) for role in share.roles}
            for name, noise in bins.items():
                noise_sample = loader.to_device(generator.draw(len(target), rng, noise), where)
                for role, cond in conds.items():
                    with torch.no_grad():
                        (values,) = generator.loss(target, cond, noise_sample).values()
                    items[role] += [
                        {"id": f"{key}@{name}", "type": name, "value": value}
                        for key, value in zip(batch["keys"], values.tolist(), strict=True)
                    ]
            progress.update(len(batch["keys"]))
    write_json(share.to, items)


@functools.lru_cache(maxsize=1)
def _generator(backbones: Path, device: str) -> Unclip:
    """Read once a process."""
    return load_generator(backbones / "unclip", pick_device(device))


def _bins(num_timesteps: int, params: DiffusionLoss) -> dict[str, NoiseConfig]:
    """What is drawn for each image in each bin of timesteps; a bin's name says its range."""
    edges = [i * num_timesteps // params.bins for i in range(params.bins + 1)]
    return {
        f"t {low}-{high - 1}": NoiseConfig(
            timesteps=(low, high - 1),
            timesteps_drawn="independent",
            noise_level=(params.noise_level, params.noise_level),
            condition_dropout=None,
            time_scale=0.0,
        )
        for low, high in zip(edges, edges[1:], strict=False)
    }


def _plot(both: dict[Role, Scores], path: Path) -> None:
    """Loss by timestep bin of both encoders, and their difference, which is far smaller than either."""
    from matplotlib.figure import Figure

    before, after = both["reference"].per_type(), both["tuned"].per_type()
    names = [name.removeprefix("t ") for name in before]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(names, [score for score, _ in before.values()], marker="o", label="reference")
    left.plot(names, [score for score, _ in after.values()], marker="x", label="tuned")
    left.set(title="diffusion loss", xlabel="timestep", yscale="log")
    left.legend()
    right.bar(names, [1000 * (after[name][0] - before[name][0]) for name in before])
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="tuned - reference, in thousandths", xlabel="timestep")
    for axes in (left, right):
        axes.tick_params(axis="x", rotation=60)
    figure.savefig(path, dpi=110, metadata={"Software": None})
