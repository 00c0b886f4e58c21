"""The method table: a method is a row of names; a number never stands here.

    L = rec_phi(x | cond_psi(enc_theta(x))) + sum of lambda_i anchor_i(enc_theta(x), enc_theta0(x))

un2clip (arXiv 2505.24517, eq. 3) trains theta through a frozen phi, without psi and without an anchor.
"""

from dataclasses import dataclass

from un2clip.config import lookup
from un2clip.decoders.kinds import KINDS
from un2clip.methods.anchors import ANCHORS, Bank
from un2clip.methods.conditions import CONDITIONS

PARTS = ("encoder", "condition", "decoder")


@dataclass(frozen=True)
class Phase:
    """One phase of a method: what moves in it, and by which numbers.

    Attributes:
        numbers: name in `finetune.phases` of params.yaml.
        trains: parts that move, of PARTS; every other part stays bitwise as it was.
        starts: before: the encoder as the phase before left it. reference: as it entered the first phase.
    """

    numbers: str
    trains: tuple[str, ...]
    starts: str = "before"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row.

    Attributes:
        condition: what the decoder is told of the encoder's features, of CONDITIONS.
        decoder: through what it trains, of decoders.kinds.KINDS.
        anchors: what holds the encoder near the reference, of ANCHORS; their weights are `finetune.anchors`.
        phases: one after the other.
        contrasts: whether predictions are contrasted (contrast.py) instead of held against the truth alone.
        measures_statistics: whether the unCLIP's normaliser gets the statistics of this encoder's embeddings first.
        description: one line for people.
    """

    condition: str = "identity"
    decoder: str = "unclip"
    anchors: tuple[str, ...] = ()
    phases: tuple[Phase, ...]
    contrasts: bool = False
    measures_statistics: bool = False
    description: str

    def __post_init__(self) -> None:
        assert self.condition in CONDITIONS and self.decoder in KINDS and set(self.anchors) <= set(ANCHORS), self
        assert self.phases and all(set(phase.trains) <= set(PARTS) for phase in self.phases), self

    def trains(self, part: str) -> bool:
        """Whether any phase moves a part."""
        return any(part in phase.trains for phase in self.phases)

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The banks of texts that its anchors ask for."""
        return tuple(bank for name in self.anchors if (bank := ANCHORS[name].bank) is not None)


_ENCODER = (Phase("tune", ("encoder",)),)
_NOISED = (Phase("noised", ("encoder",)),)
_UNILIP = (Phase("unilip-1", ("condition", "decoder")), Phase("unilip-2", ("encoder", "condition", "decoder")))

METHODS: dict[str, Method] = {
    "un2clip": Method(
        phases=_ENCODER,
        description="the paper's method: the encoder trains through the frozen generator",
    ),
    "un2clip-anchored": Method(
        anchors=("embedding",),
        phases=_ENCODER,
        description="ours: the same, and the embedding is held near the reference's",
    ),
    "un2clip-captions": Method(
        anchors=("embedding", "captions"),
        phases=_ENCODER,
        description="ours: un2clip-anchored with a caption-KL anchor besides",
    ),
    "un2clip-uniform": Method(
        phases=(Phase("uniform", ("encoder",)),),
        description="un2clip with every level of noise on the embedding, as the generator itself is trained",
    ),
    "un2clip-noised": Method(
        phases=_NOISED,
        description="ours: un2clip with strong noise on the embedding, so that a detail's size counts",
    ),
    "un2clip-held": Method(
        anchors=("cosines",),
        phases=_ENCODER,
        description="ours: un2clip, and the likeness to common words is held to the reference's",
    ),
    "un2clip-noised-held": Method(
        anchors=("cosines",),
        phases=_NOISED,
        description="ours: un2clip-noised, and the likeness to common words is held to the reference's",
    ),
    "un2clip-shuffled": Method(
        condition="shuffled",
        anchors=("cosines",),
        phases=_NOISED,
        description="a control that must not gain: un2clip-noised-held, told of another image's embedding",
    ),
    "un2clip-band": Method(
        anchors=("embedding", "band"),
        phases=_ENCODER,
        description="ours: un2clip-anchored, and the patches' low frequencies are held to the reference's",
    ),
    "un2clip-longer": Method(
        phases=(Phase("longer", ("encoder",)),),
        description="the paper's ablation: un2clip for more steps",
    ),
    "projector-random": Method(
        condition="linear",
        phases=(Phase("tune", ("encoder", "condition")),),
        description="the paper's ablation: a linear projector before the generator, random at the start",
    ),
    "projector-identity": Method(
        condition="linear-identity",
        phases=(Phase("tune", ("encoder", "condition")),),
        description="the paper's ablation: the same projector, which changes nothing at the start",
    ),
    "update-generator": Method(
        phases=(Phase("tune", ("encoder", "decoder")),),
        description="the paper's ablation: the generator trains too",
    ),
    "align": Method(
        phases=(Phase("align", ("decoder",)),),
        measures_statistics=True,
        description="trains an unCLIP for a frozen encoder; `backbones` uses it",
    ),
    "diva": Method(
        condition="dense",
        decoder="text_to_image",
        phases=(Phase("diva", ("encoder", "condition")),),
        description="DIVA (arXiv 2407.20171): through a frozen text-to-image generator, told by embedding and patches",
    ),
    "genhancer": Method(
        condition="pooled-mlp",
        decoder="flow",
        phases=(
            Phase("genhancer-1", ("condition", "decoder")),
            Phase("genhancer-2", ("encoder",)),
        ),
        description="GenHancer (arXiv 2503.19480): through a small flow from scratch, then the encoder alone by LoRA",
    ),
    "dcr": Method(
        condition="pooled-added",
        decoder="text_to_image",
        contrasts=True,
        phases=(Phase("dcr-1", ("condition",)), Phase("dcr-2", ("encoder",))),
        description="DCR (arXiv 2603.04803): what a frozen generator predicts is contrasted; a projector, then LoRA",
    ),
    "unilip": Method(
        condition="spatial",
        decoder="pixels",
        anchors=("tokens",),
        phases=_UNILIP,
        description="UniLIP's reconstruction (arXiv 2507.23278): pixels from patches, then all with self-distillation",
    ),
    "unilip-high": Method(
        condition="spatial",
        decoder="pixels",
        anchors=("tokens",),
        phases=(*_UNILIP, Phase("unilip-3", ("encoder", "condition", "decoder"))),
        description="UniLIP's reconstruction, and its third stage, at a higher resolution",
    ),
}


def get_method(name: str) -> Method:
    """The row called `name`, or a UserError that lists the table."""
    return lookup(METHODS, name, "method")
