"""Units: in what a score is counted, and all that follows: a row of UNITS each. No other file asks which one it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from un2clip.evidence.aggregates import Aggregate, Mean, MeanOverTypes
from un2clip.evidence.crossed import Crossed, MeanOfGroups
from un2clip.evidence.items import Item


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row.

    Attributes:
        name: as scores files have it.
        label: the same for readers of the report.
        note: sentence under the report's table.
        change: in what a gate's sentence counts a difference.
        counts: what n counts.
        scale: what an aggregate's 1 is: 100 in %.
        digits: decimals in the report.
        study_name, study_scale, study_digits: the same in the study's tables, whose numbers are `study_scale` as large.
        lower_is_better: whether a fall is a gain.
        aggregate: how items become a score; None for a number of the whole set, such as FID.
        complaint: item -> what is wrong with it, "" if nothing is.
        out_of: whether an item says what its value is out of; elsewhere that is 1, and not in the file.
        total: item -> what it adds to a total that a sample has whatever the encoder; None where there is none.
            Scores whose totals differ miss items, or have items that nobody measured.
        paired: whether two encoders must have the same items; elsewhere, items of the same samples.
        right_or_wrong: whether an item is right (1) or wrong (0) and all weigh alike, as McNemar's test asks, and what
            one item is worth.
    """

    name: str
    label: str
    note: str
    change: str
    counts: str
    scale: float
    digits: int
    study_name: str
    study_scale: float
    study_digits: int
    lower_is_better: bool
    aggregate: Aggregate | None
    complaint: Callable[[Item], str]
    out_of: bool
    total: Callable[[Item], float] | None
    paired: bool
    right_or_wrong: bool

    @property
    def set_level(self) -> bool:
        """Whether it is one number of the whole set: no items, so no interval, and never a rule of the gate."""
        return self.aggregate is None


def get_unit(name: str) -> Unit:
    """The row called `name`.

    Raises:
        ValueError: there is none; lists the table.
    """
    if name not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {name!r}")
    return UNITS[name]


def _share(item: Item) -> str:
    """Right is 1 and wrong is 0."""
    return "outcomes in % must be between 0 and 1" if item.value < 0.0 or item.value > 1.0 else ""


def _right_or_wrong(item: Item) -> str:
    """Whether all of several are right can't be told from shares."""
    return "" if item.value in (0.0, 1.0) else "outcomes that count in groups must be 0 or 1"


def _squared_error(item: Item) -> str:
    """NaN is the outcome of a model that failed, and compared with nothing; less than 0 is no square."""
    return "a squared error must be at least 0 and finite" if item.value < 0.0 or item.value == math.inf else ""


def _decibels(item: Item) -> str:
    """A picture that is given back to the bit has infinitely many; the benchmark counts LOUDEST for it."""
    return "" if 0.0 <= item.value <= LOUDEST else f"a PSNR must be between 0 and {LOUDEST:g} dB"


def _likeness(item: Item) -> str:
    return "" if -1.0 <= item.value <= 1.0 else "an SSIM must be between -1 and 1"


def _overlap(item: Item) -> str:
    """One class in one image: value the pixels of the intersection, `of` those of the union, which is not 0."""
    if not 0.0 <= item.value <= item.of < math.inf or not item.of:
        return "an intersection must be within a union that is not empty"
    if not (item.value.is_integer() and item.of.is_integer()):
        return "intersection and union are whole numbers of pixels"
    return "" if item.id == f"{item.sample}@{item.type}" else "ids in mIoU must be image@class, with no @ in the class"


_PERCENT = Unit(
    name="%",
    label="% correct",
    note="Scores in %, differences in points.",
    change="points",
    counts="samples",
    scale=100.0,
    digits=1,
    study_name="%",
    study_scale=1.0,
    study_digits=1,
    lower_is_better=False,
    aggregate=Mean(),
    complaint=_share,
    out_of=False,
    total=None,
    paired=True,
    right_or_wrong=True,
)

#: PSNR of a picture that is given back to the bit, and of any that comes nearer than that.
LOUDEST = 100.0
_DECIBELS = replace(
    _PERCENT,
    name="dB",
    label="PSNR, dB",
    note="Peak signal-to-noise ratio of each image, of pixels between 0 and 1; the mean over the images.",
    change="dB",
    counts="images",
    scale=1.0,
    digits=2,
    study_name="dB",
    study_digits=2,
    complaint=_decibels,
    right_or_wrong=False,
)
_OF_SETS = replace(_DECIBELS, digits=3, study_digits=3, counts="sets", lower_is_better=True, aggregate=None)

#: Questions of which several count together; one of them is worth nothing by itself.
_GROUPED = replace(_PERCENT, counts="groups", complaint=_right_or_wrong, right_or_wrong=False)

UNITS: dict[str, Unit] = {
    row.name: row
    for row in (
        _PERCENT,
        Unit(
            name="mse",
            label="mean squared error, lower is better",
            note="Mean squared error; lower is better.",
            change="mse",
            counts="samples",
            scale=1.0,
            digits=5,
            study_name="thousandths of a squared error, less is better",
            study_scale=1000.0,
            study_digits=3,
            lower_is_better=True,
            aggregate=Mean(),
            complaint=_squared_error,
            out_of=False,
            total=None,
            paired=True,
            right_or_wrong=False,
        ),
        Unit(
            name="mIoU",
            label="mIoU, %",
            note="Intersection over union, summed over the set for each class, then averaged over the classes; in %, "
            "differences in points.",
            change="points",
            counts="images",
            scale=100.0,
            digits=1,
            study_name="mIoU",
            study_scale=1.0,
            study_digits=1,
            lower_is_better=False,
            aggregate=MeanOverTypes(),
            complaint=_overlap,
            out_of=True,
            # labels and predictions each cover the image: over its classes, intersection + union is twice its pixels
            total=lambda item: item.value + item.of,
            paired=False,  # which classes have a union in an image depends on the prediction
            right_or_wrong=False,
        ),
        _DECIBELS,
        replace(
            _DECIBELS,
            name="SSIM",
            label="SSIM",
            note="Structural similarity of each image (Wang et al. 2004), of pixels between 0 and 1; the mean over the "
            "images.",
            change="SSIM",
            digits=3,
            study_name="SSIM",
            study_digits=3,
            complaint=_likeness,
        ),
        replace(
            _OF_SETS,
            name="Frechet",
            label="Fréchet distance of the untouched encoder's features, lower is better",
            note="One number of the whole set, without an interval. It is no FID, whose features are Inception's.",
            change="Fréchet",
            study_name="Fréchet",
        ),
        replace(
            _OF_SETS,
            name="rFID",
            label="rFID, lower is better",
            note="Fréchet distance of Inception's features, images against their reconstructions; one number of the "
            "whole set, without an interval.",
            change="rFID",
            study_name="rFID",
        ),
        replace(
            _GROUPED,
            name="% of groups",
            label="groups with every answer right, %",
            note="A group (a pair, two questions times two images, all rotations of a question) counts only if every "
            "answer in it is right; in %, differences in points.",
            aggregate=Crossed(samples=1.0),
        ),
        replace(
            _GROUPED,
            name="% by source",
            complaint=_share,
            label="mean of the sources, %",
            note="The sources of a group weigh alike, and so do the groups; in %, differences in points.",
            counts="images",
            aggregate=MeanOfGroups("2D", "3D"),
        ),
        replace(
            _GROUPED,
            name="% a f q",
            label="mean of aAcc, fAcc and qAcc, %",
            note="The mean of three: questions right, figures with all their questions right, and questions right on "
            "all their figures; in %, differences in points.",
            counts="sets",
            aggregate=Crossed(items=1 / 3, rows=1 / 3, columns=1 / 3),
        ),
        replace(
            _GROUPED,
            name="MME",
            label="points of MME",
            note="Of each subtask the questions right and the images with both questions right, each in %; summed over "
            "the subtasks, each of which has 200 at most.",
            change="points of MME",
            counts="images",
            study_name="MME",
            aggregate=Crossed(items=1.0, samples=1.0, sum_types=True),
        ),
    )
}
