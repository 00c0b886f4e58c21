"""A training step against a plain loop of the same parts, as one would write it with diffusers, open_clip, webdataset.

    python -m timings.training_step                     the laptop pair, batch 64, on the CPU; some minutes
    python -m timings.training_step half --batch 1 --steps 1 --blocks 3
    python -m timings.training_step L --device cuda --precision bf16 --batch 16
    python -m timings.training_step --smallest          one narrow step: only that it runs

The plain loop reads tars by webdataset, makes both views by PIL transforms, encodes by the VAE in every step, and steps
torch's AdamW. Ours is the loop of `finetune`, with the latents cached and without. All three take turns in one process,
in blocks of steps whose first is not counted; the median of the blocks counts. Seconds are of processor time on a CPU,
so other work on the machine counts little, and of the clock on a GPU.
"""

import argparse
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import webdataset
from diffusers.models.embeddings import get_timestep_embedding
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torchvision import transforms

from un2clip.config import build, read_params
from un2clip.datasets import loader
from un2clip.datasets.latents import CachedLatents, file_of
from un2clip.datasets.shards import EncodedSample, ShardWriter
from un2clip.decoders import Unclip, load_generator
from un2clip.devices import multiplying
from un2clip.files.outputs import save_tensors
from un2clip.hashes import file_sha256
from un2clip.methods.building import new_objective
from un2clip.methods.table import get_method
from un2clip.models.clip import Clip, load_clip
from un2clip.planning.published import CONFIG, new_generator
from un2clip.sources.packaged import located
from un2clip.stages.finetune_job import Finetune
from un2clip.stages.ingest import Ingest, ingest
from un2clip.training.batches import local_batches
from un2clip.training.loop import fit

PARAMS = read_params(Path("params.yaml"))
ENCODER = "ViT-L-14-quickgelu"
#: Of the encoder, whose text tower no step reads.
NARROW = {
    "half": {"vision_cfg": {"width": 512}, "text_cfg": {"layers": 1}},
    "smallest": {"vision_cfg": {"layers": 1, "width": 64}, "text_cfg": {"layers": 1, "width": 64, "heads": 1}},
}
COLUMNS = ("size", "device", "precision", "batch", "plain s", "ours s", "ratio", "ours, latents cached, s", "ratio")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how.

    Attributes:
        clip, generator: on their device; each loop gets its own.
        folder: images/ as they came, shards/ as `ingest` made them.
        precision: fp32 | tf32 | bf16; of the arithmetic, and bf16 of what does not train.
        workers: processes that read, in both loops.
    """

    clip: Clip
    generator: Unclip
    folder: Path
    batch: int
    precision: str
    workers: int

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", choices=("laptop", "half", "L"), default="laptop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a block")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    args = parser.parse_args()
    if args.smallest:
        args.size, args.batch, args.steps, args.blocks = "smallest", 2, 1, 1
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        clip, generator = networks(args.size, torch.device(args.device))
        fill(Path(folder), max(2 * args.batch, 8), generator.image_px)
        case = Case(
            clip=clip, generator=generator, folder=Path(folder), batch=args.batch, precision=args.precision,
            workers=args.workers,
        )  # fmt: skip
        plain, ours, cached = race(case, args.steps, args.blocks)
    cells = [args.size, args.device, args.precision, str(args.batch), f"{plain:.3f}"]
    cells += [f"{ours:.3f}", f"{plain / ours:.2f}", f"{cached:.3f}", f"{plain / cached:.2f}"]
    print(f"| {' | '.join(cells)} |")


def networks(size: str, device: torch.device) -> tuple[Clip, Unclip]:
    """The laptop pair with its weights, or with random ones L, ViT-L-14 and unCLIP-L; half; smallest: narrow ones."""
    if size == "laptop":
        clip, unclip = (Path(located("laptop-pair", part)) for part in ("clip", "unclip"))
        return load_clip(clip, device), load_generator(unclip, device)
    torch.manual_seed(0)
    with device:
        generator = new_generator(CONFIG["embed_dim"]["unclip-l"], size="" if size == "L" else size)
    model_cfg: dict[str, Any] = dict(open_clip.get_model_config(ENCODER) or {})
    model_cfg |= {key: model_cfg[key] | each for key, each in NARROW.get(size, {}).items()}
    towers = {key: model_cfg[key] for key in ("vision_cfg", "text_cfg")}
    model, _, preprocess = open_clip.create_model_and_transforms(ENCODER, pretrained=None, device=device, **towers)
    config = {"model_cfg": model_cfg, "preprocess_cfg": model.visual.preprocess_cfg}
    clip = Clip(model=model.eval(), preprocess=preprocess, tokenize=open_clip.get_tokenizer(ENCODER), config=config)
    return clip, generator


def fill(folder: Path, images: int, image_px: int) -> None:
    """images/: a tar of random JPEG pictures, a third larger than the generator's; shards/: what `ingest` makes."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "images", images) as writer:
        for number in range(images):
            rough = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            file = io.BytesIO()
            rough.resize((image_px * 4 // 3, image_px), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            key, caption = f"{number:06d}", f"picture {number}"
            writer.add(EncodedSample(key=key, image=file.getvalue(), extension="jpg", caption=caption, metadata=None))
        writer.close()
    section = PARAMS["ingest"] | {"short_side_px": image_px, "heldout_fraction": 0.0, "processes": 1}
    ingest(build(Ingest, section, "ingest"), images=folder / "images", shards=folder / "shards")


def race(case: Case, steps: int, blocks: int) -> list[float]:
    """Seconds a step of the plain loop, of ours, and of ours with the latents cached."""
    cached = cache(case)
    runs = [partial(plain, case), partial(ours, case, None), partial(ours, case, cached)]
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(blocks):
        for run, seconds in zip(runs, taken, strict=True):
            with multiplying(case.precision):
                marks = run(steps + 1)
            seconds.append((marks[-1] - marks[0]) / (len(marks) - 1))
    return [statistics.median(each) for each in taken]


def cache(case: Case) -> CachedLatents:
    """The latents of all images of the split, as the stage `latents` writes them."""
    view = loader.generator_view(case.generator.image_px)
    reader, folder = loader.open_split(case.folder / "shards", "train", _no_view, view), case.folder / "latents"
    sha256 = {}
    for number, shard in enumerate(reader.listed):
        path = file_of(folder, case.folder / "shards/train" / shard.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = (loader.SampleIndex(number, i) for i in range(shard.samples))
        batches = loader.read(reader, loader.batched(samples, case.batch), 0)
        save_tensors({"latents": torch.cat([case.generator.target(batch).cpu() for batch in batches])}, path)
        sha256[f"train/{shard.name}"] = file_sha256(path)
    return CachedLatents(folder=folder, sha256=sha256)


def ours(case: Case, cached: CachedLatents | None, steps: int, **compute: Any) -> list[float]:
    """The time after each step of the loop of `finetune`, by the row un2clip."""
    section = build(Finetune, PARAMS["finetune"], "finetune")
    numbers = {"max_per_device": case.batch, "workers": case.workers, "refer_every": 0}
    frozen = "bf16" if case.precision == "bf16" else "fp32"
    numbers |= {"precision": case.precision, "frozen": frozen, "processes": 1} | compute
    how, row = dataclasses.replace(section.compute, **numbers), get_method("un2clip")
    (phase,) = section.phases_of(row)
    objective = new_objective(row, case.clip, case.generator, section.anchors, seed=0)
    view = loader.generator_view(case.generator.image_px)
    reader = loader.open_split(case.folder / "shards", "train", case.clip.preprocess, view, cached)
    marks: list[float] = []

    def batches(step: int) -> Iterator[loader.Batch]:
        return local_batches(
            reader, case.generator.target, batch_size=case.batch, seed=0, step=step, workers=case.workers,
            device=case.device,
        )  # fmt: skip

    fit(
        objective, row.phases[0].trains, dataclasses.replace(phase, steps=steps), how, batches,
        torch.Generator().manual_seed(0), [], on_step=lambda step, record: marks.append(case.now()),
    )  # fmt: skip
    return marks


def plain(case: Case, steps: int) -> list[float]:
    """The time after each step of a loop that knows nothing of this package but its weights."""
    visual, unet, vae, device = case.clip.model.visual, case.generator.unet, case.generator.vae, case.device
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    unet.requires_grad_(False).to(dtype)
    vae.requires_grad_(False).to(dtype)
    visual.requires_grad_(True).train()
    prompt = case.generator.prompt_embeds.to(dtype)
    optimizer = torch.optim.AdamW(visual.parameters(), lr=3e-7, weight_decay=0.0)
    side = case.generator.image_px
    view = transforms.Compose([
        transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(side),
        transforms.ToTensor(), transforms.Normalize([0.5], [0.5]),
    ])  # fmt: skip
    tars = [str(path) for path in sorted((case.folder / "images").rglob("*.tar"))]
    data = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg")
    data = data.map_tuple(_Both(case.clip.preprocess, view)).repeat()
    batches = iter(
        torch.utils.data.DataLoader(
            data, batch_size=case.batch, num_workers=case.workers, pin_memory=case.device.type == "cuda"
        )
    )
    marks: list[float] = []
    losses: list[float] = []
    scheduler, noising, mean, std = _schedules(case.generator)
    for _ in range(steps):
        ((pixel_values, images),) = next(batches)
        pixel_values, images = pixel_values.to(device), images.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(images.to(dtype)).latent_dist.sample().float() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            epsilon = scheduler.config.prediction_type == "epsilon"
            target = noise if epsilon else scheduler.get_velocity(latents, noise, timesteps)
            level = torch.zeros(len(latents), dtype=torch.long, device=device)
            scaled = (visual(pixel_values).float() - mean) / std
            embedding = noising.add_noise(scaled, torch.randn_like(scaled), level) * std + mean
            said = get_timestep_embedding(level, mean.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
            labels = torch.cat([embedding, said.to(embedding.dtype)], dim=1).to(dtype)
            told = prompt.expand(len(latents), -1, -1)
            predicted = unet(noisy.to(dtype), timesteps, encoder_hidden_states=told, class_labels=labels).sample
            loss = mse_loss(predicted.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        marks.append(case.now())
    assert np.isfinite(losses).all()
    return marks


class _Both:
    """Both views of a picture; a class, for workers to be handed it."""

    def __init__(self, first: Callable[[Image.Image], Tensor], second: Callable[[Image.Image], Tensor]) -> None:
        self.first, self.second = first, second

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.first(image), self.second(image)


def _schedules(generator: Unclip) -> tuple[Any, Any, Tensor, Tensor]:
    return generator.scheduler, generator.image_noising_scheduler, generator.mean.float(), generator.std.float()


def _no_view(image: Image.Image) -> Tensor:
    return torch.empty(0)


if __name__ == "__main__":
    main()
