"""How often does the gate promote an encoder that differs from the champion by its seed alone? Real trainings, small.

    python -m tests.retrained --trainings 40 --seed 0 --to FOLDER

`null_pairs` draws its pairs; here the method trains the shipped laptop pair for a few steps, with one seed after the
other on one world. Each two encoders in a row are judged both ways: the second as challenger of the first, then the
first as challenger of the second. By their method neither is better, so every promotion is a false one. No encoder
stands in two pairs, so the interval is that of independent pairs. What was trained is kept in the folder, and the same
command goes on. docs/statistics.md has the result.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from tests.null_pairs import rate
from un2clip.config import build, merge, read_params
from un2clip.evaluation.measuring import Evaluate, Subject, get_benchmark, measure
from un2clip.evidence.exact import share_bounds
from un2clip.evidence.scores import Scores, load_scores
from un2clip.models.clip import encoder_sha256, load_clip
from un2clip.stages import get_stage, stage_params

ROOT = Path(__file__).parents[1]
DETAIL = "mmvp_vlm"
#: A world that is rendered in seconds, and a training of seconds that still moves many pairs.
SMALL = {
    "shapes": {"train_scenes": 1024, "heldout_scenes": 16, "pairs_per_type": 30, "images_per_class": 1,
               "segmentation_images": 1, "probe_train_scenes": 160, "probe_test_per_attribute": 10},
    "finetune": {"batch_size": 16, "compute": {"processes": 1},
                 "phases": {"tune": {"steps": 12, "warmup_steps": 2}}},
}  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    """The numbers of params.yaml under those of SMALL, and these."""
    return merge(merge(read_params(ROOT / "params.yaml"), SMALL), changes)


def trained(params: Mapping[str, Any], *, trainings: int, seed: int, to: Path) -> list[Scores]:
    """Train with the seeds after `seed` on its world, and give each encoder's scores of DETAIL.

    Args:
        params: as `small` gives them.
        to: folder of world and scores; the encoders themselves are not kept.
    """
    images, benchmarks, shards, backbones, latents = (
        to / name for name in ("images", "benchmarks", "shards", "backbones", "latents")
    )
    made = {"shards": shards, "backbones": backbones, "latents": latents}
    if not latents.is_dir():
        _run(params, "shapes", seed=seed, images=images, instructions=to / "instructions", benchmarks=benchmarks)
        _run(params, "ingest", images=images, shards=shards)
        _run(params, "backbones", seed=seed, device="cpu", images=images, backbones=backbones)
        partial = to / "latents.partial"
        _run(params, "latents", device="cpu", shards=shards, backbones=backbones, latents=partial)
        partial.rename(latents)
    found, evaluate = [], build(Evaluate, params["evaluate"], "evaluate")
    for each in tqdm(range(seed + 1, seed + 1 + trainings), unit="training"):
        kept, encoder = to / "scores" / f"{each}.json", to / "encoder"
        if not kept.is_file():
            shutil.rmtree(encoder, ignore_errors=True)
            _run(params, "finetune", method=params["method"], seed=each, device="cpu", checkpoints="",
                 encoder=encoder, **made)  # fmt: skip
            subject = Subject(model=load_clip(encoder, "cpu"), method=params["method"],
                              encoder_sha256=encoder_sha256(encoder))  # fmt: skip
            (scores,) = measure(get_benchmark(DETAIL, "clip"), {"tuned": subject}, benchmarks / DETAIL, evaluate)
            scores.save(kept)
        found.append(load_scores(kept))
    return found


def _run(params: Mapping[str, Any], stage: str, **names: Any) -> None:
    get_stage(stage)(stage_params(stage, params[stage]), **names)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the gate made of pairs of encoders, each judged both ways.

    Attributes:
        pairs: of encoders.
        promoted: in how many of them one was promoted over the other; both ways at once is impossible.
        changed: share of the items in which the two of a pair differ, on average.
        deviation: of the scores over the seeds, in points.
        noise: standard error of a pair's difference that its items alone would give, in points, on average.
    """

    pairs: int
    promoted: int
    changed: float
    deviation: float
    noise: float

    @property
    def sentence(self) -> str:
        low, high = share_bounds(self.promoted, self.pairs, 0.95)
        return (
            f"{self.promoted} of {2 * self.pairs} judgements promoted: {50 * self.promoted / self.pairs:.1f} % "
            f"(95 % interval {50 * low:.1f} to {50 * high:.1f}, {self.pairs} independent pairs). "
            f"{100 * self.changed:.1f} % of the items differ within a pair, which is a noise of {self.noise:.1f} "
            f"points; the scores' own deviation over the seeds is {self.deviation:.1f} points."
        )


def judge(scores: Sequence[Scores], *, resamples: int, confidence: float) -> Judged:
    """Let the gate judge each two encoders in a row, both ways, by superiority."""
    pairs = list(zip(scores[::2], scores[1::2], strict=True))
    both = [each for pair in pairs for each in (pair, pair[::-1])]
    found = rate(DETAIL, 0.0, iter(both), len(both), resamples=resamples, confidence=confidence)
    changed = [
        sum(old.value != new.value for old, new in zip(before.items, after.items, strict=True)) / before.n
        for before, after in pairs
    ]
    return Judged(
        pairs=len(pairs),
        promoted=found.promoted,
        changed=fmean(changed),
        deviation=stdev(each.score for each in scores),
        noise=100 * fmean((share / scores[0].n) ** 0.5 for share in changed),
    )


def main() -> None:
    """Train, judge, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainings", type=int, default=40, help="an even number, two a pair")
    parser.add_argument("--seed", type=int, default=0, help="of the world; the trainings have the seeds after it")
    parser.add_argument("--to", type=Path, required=True, help="folder of what is made, to go on from")
    options = parser.parse_args()
    params = small()
    scores = trained(params, trainings=options.trainings, seed=options.seed, to=options.to)
    section = params["compare"]
    print(judge(scores, resamples=section["resamples"], confidence=section["confidence"]).sentence)


if __name__ == "__main__":
    main()
