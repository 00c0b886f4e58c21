"""MMVP-VLM as DIVA's code scores it (arXiv 2407.20171; baaivision/DIVA): patches that are drawn at test time count too.

A score of one draw is one of many, and its users found all of theirs below the untouched model's (issues 11 and 12). So
it is given over several draws, with their spread, beside the plain score.
"""

import statistics
import zlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from un2clip.config import lookup, read_yaml
from un2clip.devices import pick_device
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import mmvp_vlm
from un2clip.methods.features import Encoder, Features
from un2clip.models.clip import Clip, finite, load_clip


@dataclass(frozen=True, kw_only=True)
class DrawingClip(Clip):
    """A CLIP whose image embedding is its own plus the mean of patch tokens, both after the projection.

    Attributes:
        patches: so many are drawn of each image, with replacement; 0: all of them, each once.
        unit: whether each token is brought to length 1 first.
        draw: number of the draw; with an image's name it alone decides which.
        seen: features of the images, kept for the next draw.
    """

    patches: int
    unit: bool
    draw: int
    seen: dict[tuple[str, ...], Features] = field(default_factory=dict)

    @torch.no_grad()
    def embed(self, pixel_values: Tensor, names: Any = ()) -> Tensor:
        """As Clip.embed; the names are needed, one an image."""
        stems = tuple(Path(name).stem for name in names)
        if stems not in self.seen:
            self.seen[stems] = Encoder(self.model.visual, "projected")(pixel_values.to(self.device))
        features = self.seen[stems]
        assert features.tokens is not None and features.pooled is not None
        tokens, pooled = features.tokens, features.pooled
        if tokens.shape[2] != pooled.shape[1]:
            raise UserError("this encoder's patches and its embedding are of different widths, so they cannot be added")
        if self.unit:
            tokens, pooled = normalize(tokens, dim=2), normalize(pooled, dim=1)
        if self.patches:
            chosen = torch.stack([self._chosen(stem, tokens.shape[1]) for stem in stems]).to(tokens.device)
            tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))
        return finite(pooled + tokens.mean(dim=1), "image", names)

    def _chosen(self, stem: str, among: int) -> Tensor:
        rng = torch.Generator().manual_seed(zlib.crc32(f"{self.draw} {stem}".encode()))
        return torch.randint(among, (self.patches,), generator=rng)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The scores of one CLIP, in %: the plain one, and one a draw."""

    plain: float
    scores: tuple[float, ...]

    def __str__(self) -> str:
        return f"plain {self.plain:.1f} %; drawn {spread(self.scores)}"


def spread(scores: tuple[float, ...], signed: str = "") -> str:
    """Mean, standard deviation over the draws, and every one of them."""
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    listed = " ".join(f"{each:{signed}.1f}" for each in scores)
    return f"{statistics.fmean(scores):{signed}.2f}, deviation {deviation:.2f} over {len(scores)} ({listed})"


def drawn_scores(protocol: str, *, data: Path, clips: list[Path], draws: int, device: str, batch_size: int) -> None:
    """Print the scores of each CLIP under a protocol, and how the later ones differ from the first on the same draws.

    Args:
        protocol: of `protocols` in mmvp_vlm.yaml of this package.
        data: MMVP_VLM, as the benchmark reads it.
        clips: CLIP folders.
        draws: how many; 0: as many as the file says are needed.

    Raises:
        UserError: there is no such protocol, the draws are too few, or the encoder has no patches of its own width.
    """
    table: dict[str, Any] = read_yaml(files("un2clip.evaluation") / "mmvp_vlm.yaml")
    numbers, least = lookup(table["protocols"], protocol, "protocol"), int(table["draws"])
    if draws and draws < least:
        raise UserError(f"draws must be at least {least}, since one draw says little; got {draws}")
    patches = numbers["patches"]
    number = (draws or least) if patches else 1
    told = f"{patches} patches drawn with replacement" if patches else "all patches, so nothing is drawn"
    print(f"{protocol}: the class token plus the mean of {told}")
    where = pick_device(device)
    found = {folder: _measure(load_clip(folder, where), data, numbers, number, batch_size) for folder in clips}
    for folder, scores in found.items():
        print(f"{folder}: {scores}")
    first = found[clips[0]]
    for folder in clips[1:]:
        change = tuple(after - before for after, before in zip(found[folder].scores, first.scores, strict=True))
        above = sum(each > 0 for each in change)
        print(f"{folder} minus {clips[0]}: {spread(change, '+')}; above it in {above} of {number}")


def _measure(clip: Clip, data: Path, numbers: dict[str, Any], draws: int, batch_size: int) -> Drawn:
    seen: dict[tuple[str, ...], Features] = {}
    questions, scores = mmvp_vlm.read_questions(data), []
    for number in range(draws):
        drawing = [DrawingClip(**vars(clip), **numbers, draw=2 * number + statement, seen=seen) for statement in (0, 1)]
        found = [mmvp_vlm.similarities(each, questions, batch_size) for each in drawing]
        scores.append(_score(torch.stack([found[0][:, 0], found[1][:, 1]], dim=1)))
    return Drawn(plain=_score(mmvp_vlm.similarities(clip, questions, batch_size)), scores=tuple(scores))


def _score(similarity: Tensor) -> float:
    return 100 * statistics.fmean(mmvp_vlm.pair_correct(similarity))
