"""The method table: a method says what trains and what holds the encoder; a number never stands here.

    L = rec_phi(x | proj_psi(enc_theta(x))) + sum of lambda_i anchor_i(enc_theta(x), enc_theta0(x))

un2clip (arXiv 2505.24517, eq. 3) trains theta through a frozen phi, without psi and without an anchor. DIVA and UniLIP
are rows with another condition and decoder.
"""

from dataclasses import dataclass
from typing import Literal

from un2clip.config import lookup
from un2clip.methods.conditions import Init

Part = Literal["encoder", "projector", "decoder"]
Anchor = Literal["embedding", "captions"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row.

    Attributes:
        trains: which parts move; every other part stays bitwise as it was.
        anchors: what holds the encoder near the reference: embedding: the distance of their embeddings, by
            training.anchor_weight. captions: the divergence over a bank of captions, by training.caption_weight.
        noise_level: level of the embedding's noise augmentation: the configured one, or drawn uniformly
            for each sample as in the generator's own training (arXiv 2204.06125).
        projector: initial weights of the map between encoder and generator, where there is one; it trains.
        longer: whether it trains finetune.longer times the steps.
        measures_statistics: whether the generator's normaliser gets the statistics of this encoder's embeddings first.
        description: one line for people.
    """

    trains: tuple[Part, ...]
    anchors: tuple[Anchor, ...]
    noise_level: Literal["configured", "uniform"]
    projector: Init = "none"
    longer: bool = False
    measures_statistics: bool = False
    description: str

    def __post_init__(self) -> None:
        assert ("projector" in self.trains) == (self.projector != "none"), self.description


METHODS: dict[str, Method] = {
    "un2clip": Method(
        trains=("encoder",),
        anchors=(),
        noise_level="configured",
        description="the paper's method: the encoder trains through the frozen generator",
    ),
    "un2clip-anchored": Method(
        trains=("encoder",),
        anchors=("embedding",),
        noise_level="configured",
        description="ours: the same, and the embedding is held near the reference's",
    ),
    "un2clip-captions": Method(
        trains=("encoder",),
        anchors=("embedding", "captions"),
        noise_level="configured",
        description="ours: un2clip-anchored with a caption-KL anchor besides",
    ),
    "un2clip-longer": Method(
        trains=("encoder",),
        anchors=(),
        noise_level="configured",
        longer=True,
        description="the paper's ablation: un2clip for more steps",
    ),
    "projector-random": Method(
        trains=("encoder", "projector"),
        anchors=(),
        noise_level="configured",
        projector="random",
        description="the paper's ablation: a linear projector before the generator, random at the start",
    ),
    "projector-identity": Method(
        trains=("encoder", "projector"),
        anchors=(),
        noise_level="configured",
        projector="identity",
        description="the paper's ablation: the same projector, which changes nothing at the start",
    ),
    "update-generator": Method(
        trains=("encoder", "decoder"),
        anchors=(),
        noise_level="configured",
        description="the paper's ablation: the generator trains too",
    ),
    "align": Method(
        trains=("decoder",),
        anchors=(),
        noise_level="uniform",
        measures_statistics=True,
        description="trains an unCLIP for a frozen encoder; `backbones` uses it",
    ),
}


def get_method(name: str) -> Method:
    """The row called `name`, or a UserError that lists the table."""
    return lookup(METHODS, name, "method")
