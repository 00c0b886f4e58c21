"""Conditions: what a decoder is told of an encoder's features. A condition is a class of a few lines and an entry.

un2CLIP has none that trains, which is its difference to the others: an unCLIP understands CLIP's own embedding. The
linear maps are its paper's ablation (arXiv 2505.24517). Presumed of them, since the text at hand does not say: a bias,
which starts at 0 in the identity; the encoder's rate, as DIVA's has; left out when the encoder is measured.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from un2clip.config import at_least, build, lookup
from un2clip.decoders.decoder import Cond, Decoder, NoiseSample
from un2clip.decoders.flow import Flow
from un2clip.decoders.pixels import Pixels
from un2clip.decoders.text_to_image import TextToImage
from un2clip.errors import UserError, cause
from un2clip.files.outputs import save_tensors
from un2clip.files.texts import read_json
from un2clip.files.weights import read_weights
from un2clip.methods.features import Features, Tokens
from un2clip.methods.spatial import Cells, SpatialConfig, check_square

NAME, WEIGHTS = "condition.json", "condition.safetensors"


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Which patch tokens `dense` tells beside the embedding, and to what of the prompt they are added.

    Attributes:
        prompt: tokens: each to a token of the prompt; as many patches are drawn as it has tokens, less the embedding's.
            mean: all of them to the mean of the prompt's tokens.
        share: with `mean`, of the patches, how many are drawn, with replacement; 0 for all, each once.
        window: patches that are averaged, one after the other; a rest is left out. 1 for none.
    """

    prompt: Literal["tokens", "mean"]
    share: float
    window: int

    def __post_init__(self) -> None:
        at_least(self, 1, "window")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be within 0 and 1, got {self.share}")
        if self.prompt == "tokens" and (self.share or self.window > 1):
            raise ValueError(
                f"share and window are for prompt: mean; with tokens they must be 0 and 1, got {self.share} and "
                f"{self.window}"
            )


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """The section `finetune.conditions`: what a condition of this name is made with."""

    dense: DenseConfig
    spatial: SpatialConfig


class Condition(nn.Module):
    """Features -> Cond. This one is un2CLIP's: the embedding itself, without a parameter.

    A condition is made for the features of one batch and for a decoder, whose sizes it takes.

    Attributes:
        tokens: which patch tokens it asks the encoder for.
        tells: what it gives a decoder, names of Cond.
        merge: patches a side of which it makes one.
    """

    tokens: Tokens = "none"
    tells: tuple[str, ...] = ("vector",)
    merge: int = 1

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
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

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
        super().__init__(features, decoder, config)
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
    """DIVA (arXiv 2407.20171): embedding and patches, all by one linear map, added to what the prompt says.

    The code has another choice of patches for each backbone (baaivision/DIVA, condition/); DenseConfig has all of them.
    """

    tokens = "projected"
    tells = ("sequence",)

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
        super().__init__(features, decoder, config)
        assert isinstance(decoder, TextToImage) and config is not None
        (_, self.patches, width), dim = _tokens(features).shape, _pooled(features).shape[1]
        if width != dim:
            raise UserError(
                f"a dense condition maps embedding and patches alike, and this encoder's have {dim} and {width} numbers"
            )
        own, self.window, (_, length, into) = config.dense, config.dense.window, decoder.prompt_embeds.shape
        self.drawn = length - 1 if own.prompt == "tokens" else int(own.share * self.patches)
        if self.window > (self.drawn or self.patches):
            raise UserError(
                f"finetune.conditions.dense.window averages {self.window} patches, and the encoder gives "
                f"{self.drawn or self.patches}"
            )
        prompt = decoder.prompt_embeds.float()
        self.map = nn.Linear(dim, into)
        self.register_buffer("prompt", prompt.clone() if own.prompt == "tokens" else prompt.mean(dim=1, keepdim=True))

    def draw(self, n: int, rng: torch.Generator) -> NoiseSample:
        """patch (n, K) int64, which patches are told, where not all of them are."""
        return {"patch": torch.randint(self.patches, (n, self.drawn), generator=rng)} if self.drawn else {}

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        tokens = _tokens(features)
        if self.drawn:
            tokens = tokens.gather(1, noise_sample["patch"][..., None].expand(-1, -1, tokens.shape[2]))
        if self.window > 1:
            tokens = avg_pool1d(tokens.transpose(1, 2), self.window).transpose(1, 2)
        return Cond(sequence=self.prompt + self.map(torch.cat([_pooled(features)[:, None], tokens], dim=1)))


class PooledAdded(Condition):
    """DCR (arXiv 2603.04803): the embedding through an MLP, added to every token of what the prompt says."""

    tells = ("sequence",)

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
        super().__init__(features, decoder, config)
        assert isinstance(decoder, TextToImage)
        self.map = _mlp(_pooled(features).shape[1], decoder.prompt_embeds.shape[2])
        self.register_buffer("prompt", decoder.prompt_embeds.float().clone())

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        return Cond(sequence=self.prompt + self.map(_pooled(features))[:, None])


class PooledMlp(Condition):
    """GenHancer (arXiv 2503.19480): the embedding through two MLPs, as a vector and as the only token of a sequence."""

    tells = ("vector", "sequence")

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
        super().__init__(features, decoder, config)
        assert isinstance(decoder, Flow)
        dim = _pooled(features).shape[1]
        self.vector, self.token = (_mlp(dim, width) for width in decoder.widths)

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        pooled = _pooled(features)
        return Cond(vector=self.vector(pooled), sequence=self.token(pooled)[:, None])


class Spatial(Condition):
    """UniLIP (arXiv 2507.23278): patches merged into cells, of each a few numbers: a map of the decoder's channels."""

    tokens = "raw"
    tells = ("spatial",)

    def __init__(self, features: Features, decoder: Decoder, config: ConditionConfig | None) -> None:
        super().__init__(features, decoder, config)
        assert isinstance(decoder, Pixels) and config is not None
        _, patches, width = _tokens(features).shape
        self.merge = config.spatial.merge
        decoder.check_cells(check_square(patches, self.merge))
        self.cells = Cells(width, decoder.channels, config.spatial)

    def forward(self, features: Features, noise_sample: NoiseSample) -> Cond:
        return Cond(spatial=self.cells(_tokens(features)))


CONDITIONS: dict[str, type[Condition]] = {
    "identity": Condition,
    "shuffled": Shuffled,
    "linear": Linear,
    "linear-identity": LinearIdentity,
    "dense": Dense,
    "pooled-mlp": PooledMlp,
    "pooled-added": PooledAdded,
    "spatial": Spatial,
}


def new_condition(
    name: str, features: Features, decoder: Decoder, seed: int, config: ConditionConfig | None = None
) -> Condition:
    """A condition for features of these shapes and for this decoder, on its device; the seed alone decides its weights.

    Args:
        config: for those that are made with numbers.

    Raises:
        UserError: there is no such condition, or it does not fit the encoder or the decoder.
    """
    kind = lookup(CONDITIONS, name, "condition")
    if not set(decoder.reads) <= set(kind.tells):
        fitting = ", ".join(other for other, each in CONDITIONS.items() if set(decoder.reads) <= set(each.tells))
        raise UserError(
            f"condition {name} tells a {' and a '.join(kind.tells)}, and the decoder {type(decoder).__name__} reads a "
            f"{' and a '.join(decoder.reads)}; what fits it: {fitting}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(features, decoder, config).to(decoder.device)


def save_condition(condition: Condition, name: str, folder: Path, config: ConditionConfig) -> None:
    """Write its weights, its name and what it was made with into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(condition.state_dict(), folder / WEIGHTS)
    (folder / NAME).write_text(json.dumps({"condition": name, "config": dataclasses.asdict(config)}) + "\n")


def load_condition(folder: Path, features: Features, decoder: Decoder) -> Condition:
    """Read what `save_condition` wrote.

    Raises:
        UserError: it is absent, or made for another encoder or decoder.
    """
    try:
        said = read_json(folder / NAME)
        config = build(ConditionConfig, said["config"], f"{folder / NAME}: config")
        condition = new_condition(said["condition"], features, decoder, seed=0, config=config)
        condition.load_state_dict(read_weights(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"cannot read the condition in {folder}: {cause(error)}") from None
    return condition


def _mlp(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


def _pooled(features: Features) -> Tensor:
    if features.pooled is None:
        raise UserError("this condition reads the pooled embedding, which the encoder does not have")
    return features.pooled


def _tokens(features: Features) -> Tensor:
    assert features.tokens is not None, "the encoder was asked for tokens"
    return features.tokens
