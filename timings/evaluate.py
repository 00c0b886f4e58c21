"""How fast evaluation is: MMVP-VLM, segmentation and zero-shot, batched, against a loop of one image at a time.

    python -m timings.evaluate            # all three encoders, random weights; a few minutes
    python -m timings.evaluate toy
    python -m timings.evaluate --smallest # two of them, one pair a type, one photograph, one block a tower

Both sides run on the same data, in the same process and with the same number of threads, three times in turn; the
fastest run of each counts. The loop makes class embeddings once too, as every published script does.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import torch
from torch.nn.functional import normalize

from un2clip.config import build, read_params
from un2clip.evaluation.benchmarks import mmvp_vlm, segmentation
from un2clip.evaluation.classification import open_classification
from un2clip.evaluation.dense.features import text_features
from un2clip.evaluation.dense.layouts import read_data_set
from un2clip.evaluation.dense.masks import read_mask, read_photograph
from un2clip.evaluation.dense.protocols import get_protocol, get_settings
from un2clip.evaluation.dense.windows import similarity_maps
from un2clip.evaluation.measuring import Evaluate, get_benchmark
from un2clip.evaluation.readers import read_image
from un2clip.models.clip import Clip
from un2clip.stages.shapes import Shapes, shapes
from un2clip.world.clip import ClipSize, new_clip

PARAMS = read_params(Path("params.yaml"))
#: encoder: side of a scene in pixels, pairs a type, photographs, protocol, batch size
RUNS = {
    "toy": (32, 50, 60, "laptop", 128),
    "ViT-B-32": (224, 4, 8, "sclip", 32),
    "ViT-B-16": (224, 4, 8, "sclip", 32),
}
SMALLEST = ("toy", "ViT-B-32")  # a ViT-B-16 runs by the same lines
REPEATS = 3


def main() -> None:
    """Print a markdown table for the encoders that are named, or for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ENCODER", help=", ".join(RUNS))
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"unknown encoder {min(unknown)}; known: {', '.join(RUNS)}")
    repeats = 1 if args.smallest else REPEATS
    print(f"threads: {torch.get_num_threads()}, torch {torch.__version__}\n")
    print("| encoder | benchmark | n | one at a time, s | batched, s | ratio |\n|---|---|---|---|---|---|")
    for name in args.names or (SMALLEST if args.smallest else RUNS):
        image_px, pairs, photographs, protocol, batch_size = RUNS[name]
        if args.smallest:
            pairs = photographs = 1
        with tempfile.TemporaryDirectory() as folder:
            clip, data = new_encoder(name, Path(folder) / "clip", args.smallest), Path(folder) / "benchmarks"
            render(data, image_px, pairs, photographs)
            chosen = PARAMS["evaluate"]["segmentation"] | {"protocol": protocol}
            section = PARAMS["evaluate"] | {"batch_size": batch_size, "segmentation": chosen}
            params = build(Evaluate, section, "evaluate")
            for benchmark, loop in LOOPS.items():
                run, n = get_benchmark(benchmark, "clip").run, count(benchmark, pairs, photographs)
                slow, fast = race(repeats, *(partial(each, clip, data / benchmark, params) for each in (loop, run)))
                print(f"| {name} | {benchmark} | {n} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |", flush=True)


def race(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Seconds of the fastest of `repeats` runs of each, run in turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in seconds]


def new_encoder(name: str, folder: Path, smallest: bool) -> Clip:
    """An encoder with random weights: the laptop's, or one of open_clip's; the smallest has one block a tower."""
    torch.manual_seed(0)
    if name == "toy":
        return new_clip(build(ClipSize, PARAMS["backbones"]["clip"], "backbones.clip"), folder)
    model_cfg = open_clip.get_model_config(name)
    if smallest:
        model_cfg = model_cfg | {key: model_cfg[key] | {"layers": 1} for key in ("vision_cfg", "text_cfg")}
    towers = {key: model_cfg[key] for key in ("vision_cfg", "text_cfg")}
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None, **towers)
    config = {"model_cfg": model_cfg, "preprocess_cfg": model.visual.preprocess_cfg}
    return Clip(model=model.eval(), preprocess=preprocess, tokenize=open_clip.get_tokenizer(name), config=config)


def render(folder: Path, image_px: int, pairs: int, photographs: int) -> None:
    """The laptop world's benchmarks at this size."""
    section = PARAMS["shapes"] | {
        "image_px": image_px,
        "pairs_per_type": pairs,
        "segmentation_images": photographs,
        "probe_train_scenes": 1,
        "probe_test_per_attribute": 1,
        "train_scenes": 1,
        "heldout_scenes": 1,
        "images_per_class": 1,
    }
    beside = {name: folder / name for name in ("images", "instructions")}
    shapes(build(Shapes, section, "shapes"), seed=0, benchmarks=folder, **beside)


def loop_pairs(clip: Clip, folder: Path, params: Evaluate) -> None:
    """MMVP-VLM, one image and one text at a time."""
    questions = mmvp_vlm.read_questions(folder)
    for pair in zip(questions[::2], questions[1::2], strict=True):
        images = [clip.embed(clip.preprocess(read_image(each.image, str(each.image)))[None])[0] for each in pair]
        texts = [clip.embed_texts([f"a photo of {each.statement}"])[0] for each in pair]
        mmvp_vlm.pair_correct((normalize(torch.stack(texts), dim=1) @ normalize(torch.stack(images), dim=1).T)[None])


def loop_photographs(clip: Clip, folder: Path, params: Evaluate) -> None:
    """Segmentation, one window at a time."""
    data, chosen = read_data_set(folder), params.segmentation
    settings = get_settings(chosen.protocol, data.name)
    protocol = get_protocol(chosen.protocol)
    how = {"method": chosen.method, "crop": settings.crop_px, "stride": settings.stride_px, "batch_size": 1}
    text = text_features(clip, data.names)
    for photograph in data.photographs:
        pixels = read_photograph(photograph)
        truth = torch.from_numpy(read_mask(data, photograph, *pixels.shape[:2])).to(clip.device)
        picture = segmentation.prepare(pixels, settings, protocol.long_side_px, clip.model.visual.preprocess_cfg)
        (similarity,) = similarity_maps(clip, [picture], text, edge=protocol.edge, **how)
        predicted = segmentation.classify(similarity, truth.shape, data.names, settings, data.background)
        counts = segmentation.confusion(truth, predicted, len(data.names))
        list(segmentation.overlaps(counts.cpu().numpy(), data.names))


def loop_classes(clip: Clip, folder: Path, params: Evaluate) -> None:
    """Zero-shot classification, one image at a time; the classes are embedded once, as every script does."""
    data = open_classification(folder, clip.preprocess)
    templates = [partial(str.format, template) for template in data.templates]
    filled = [[template(c=name) for template in templates] for name in data.names]
    classes = torch.stack([normalize(normalize(clip.embed_texts(texts), dim=1).mean(0), dim=0) for texts in filled])
    for sample in data.samples:
        _, pixel_values, _ = sample()
        (normalize(clip.embed(pixel_values[None]), dim=1) @ classes.T).argmax(1).item()


def count(benchmark: str, pairs: int, photographs: int) -> str:
    """What the benchmark has of this size."""
    of = {"mmvp_vlm": f"{9 * pairs} pairs", "segmentation": f"{photographs} images"}
    return of.get(benchmark, "an image a class")


#: benchmark -> a loop of one image at a time
LOOPS: dict[str, Callable[[Clip, Path, Evaluate], None]] = {
    "mmvp_vlm": loop_pairs,
    "segmentation": loop_photographs,
    "zeroshot": loop_classes,
}

if __name__ == "__main__":
    main()
