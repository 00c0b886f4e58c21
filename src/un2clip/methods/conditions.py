"""Conditions: what a decoder is told of an encoder's features. A condition is a class of a few lines and an entry.

un2CLIP has none that trains, which is its difference to the others: an unCLIP understands CLIP's own embedding. The
linear maps are its paper's ablation (arXiv 2505.24517). Presumed of them, since the text at hand does not say: a bias,
which starts at 0 in the identity; the encoder's rate, as DIVA's has; left out when the encoder is measured.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from un2clip.config import lookup
from un2clip.decoders.decoder import Cond, Decoder, NoiseSample
from un2clip.decoders.flow import Flow
from un2clip.decoders.pixels import Pixels
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError, cause
from un2clip.files.outputs import save_tensors
from un2clip.files.texts import read_json
from un2clip.files.weights import read_weights
from un2clip.methods.features import Features, Tokens

NAME, WEIGHTS = "condition.json", "condition.safetensors"


class Condition(nn.Module):
    """Features -> Cond. This one is un2CLIP's: the embedding itself, without a parameter.

    A condition is made for the features of one batch and for a decoder, whose sizes it takes.

    Attributes:
        tokens: which patch tokens it asks the encoder for.
    """

    tokens: Tokens = "none"

    def __init__(self, features: Features, decoder: Decoder) -> None:
        super().__init__()

    def draw(self, n: int, rng: torch.Generator) -> NoiseSample:
        """Its own random numbers for n samples."""
        return {}

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        return Cond(vector=features.pooled)


class Shuffled(Condition):
    """A control: the embedding of the batch's image before, so that nothing about the own image can be learned."""

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        return Cond(vector=_pooled(features).roll(1, dims=0))


class Linear(Condition):
    """A linear map of the embedding, (B, D) -> (B, D), as torch.nn.Linear starts: uniform within -+ 1/sqrt(D)."""

    def __init__(self, features: Features, decoder: Decoder) -> None:
        super().__init__(features, decoder)
        dim = _pooled(features).shape[1]
        self.map = nn.utils.skip_init(nn.Linear, dim, dim)
        self.start(1 / math.sqrt(dim))

    def start(self, bound: float) -> None:
        for parameter in self.map.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        return Cond(vector=self.map(_pooled(features)).float())


class LinearIdentity(Linear):
    """The same map, which gives its input back, bit for bit, at the start."""

    def start(self, bound: float) -> None:
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)


class Dense(Condition):
    """DIVA (arXiv 2407.20171): the embedding and patches drawn at random, mapped, added to the prompt's tokens."""

    tokens = "projected"

    def __init__(self, features: Features, decoder: Decoder) -> None:
        super().__init__(features, decoder)
        assert isinstance(decoder, TextToImage)
        _, self.length, width = decoder.prompt_embeds.shape
        self.patches = _tokens(features).shape[1]
        self.map = nn.Linear(_pooled(features).shape[1], width)
        self.register_buffer("prompt", decoder.prompt_embeds.float().clone())

    def draw(self, n: int, rng: torch.Generator) -> NoiseSample:
        return {"patch": torch.randint(self.patches, (n, self.length - 1), generator=rng)}

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        tokens = _tokens(features)
        drawn = tokens.gather(1, noise_sample["patch"][..., None].expand(-1, -1, tokens.shape[2]))
        return Cond(sequence=self.prompt + self.map(torch.cat([_pooled(features)[:, None], drawn], dim=1)))


class PooledMlp(Condition):
    """GenHancer (arXiv 2503.19480): the embedding through two MLPs, as a vector and as the only token of a sequence."""

    def __init__(self, features: Features, decoder: Decoder) -> None:
        super().__init__(features, decoder)
        assert isinstance(decoder, Flow)
        dim = _pooled(features).shape[1]
        self.vector, self.token = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
            for width in decoder.widths
        )

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        pooled = _pooled(features)
        return Cond(vector=self.vector(pooled), sequence=self.token(pooled)[:, None])


class Spatial(Condition):
    """UniLIP (arXiv 2507.23278): patches merged two by two, an MLP, a bottleneck of the decoder's channels."""

    tokens = "raw"

    def __init__(self, features: Features, decoder: Decoder) -> None:
        super().__init__(features, decoder)
        assert isinstance(decoder, Pixels)
        _, n, dim = _tokens(features).shape
        self.side = math.isqrt(n)
        if self.side**2 != n or self.side % 2:
            raise UserError(f"the spatial condition merges patches two by two, and the encoder has {n} of them")
        self.mlp = nn.Sequential(
            nn.LayerNorm(4 * dim), nn.Linear(4 * dim, dim), nn.GELU(), nn.Linear(dim, decoder.channels)
        )

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        grid = _tokens(features).transpose(1, 2).unflatten(2, (self.side, self.side))
        merged = pixel_unshuffle(grid, 2).movedim(1, -1)
        return Cond(spatial=self.mlp(merged).movedim(-1, 1))


CONDITIONS: dict[str, type[Condition]] = {
    "identity": Condition,
    "shuffled": Shuffled,
    "linear": Linear,
    "linear-identity": LinearIdentity,
    "dense": Dense,
    "pooled-mlp": PooledMlp,
    "spatial": Spatial,
}


def new_condition(name: str, features: Features, decoder: Decoder, seed: int) -> Condition:
    """A condition for features of these shapes and for this decoder, on its device; the seed alone decides its weights.

    Raises:
        UserError: there is no such condition, or it does not fit the encoder.
    """
    kind = lookup(CONDITIONS, name, "condition")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(features, decoder).to(decoder.device)


def save_condition(condition: Condition, name: str, folder: Path) -> None:
    """Write its weights and its name into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(condition.state_dict(), folder / WEIGHTS)
    (folder / NAME).write_text(json.dumps({"condition": name}) + "\n")


def load_condition(folder: Path, features: Features, decoder: Decoder) -> Condition:
    """Read what `save_condition` wrote.

    Raises:
        UserError: it is absent, or made for another encoder or decoder.
    """
    try:
        name = read_json(folder / NAME)["condition"]
        condition = new_condition(name, features, decoder, seed=0)
        condition.load_state_dict(read_weights(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot read the condition in {folder}: {cause(error)}") from None
    return condition


def _pooled(features: Features) -> Tensor:
    if features.pooled is None:
        raise UserError("this condition reads the pooled embedding, which the encoder does not have")
    return features.pooled


def _tokens(features: Features) -> Tensor:
    assert features.tokens is not None, "the encoder was asked for tokens"
    return features.tokens
