"""The seed of the language model is a level: hand-made tables, a naive bootstrap, and files that do not fit."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from un2clip.errors import UserError
from un2clip.evidence.items import Item
from un2clip.evidence.languages import ASKED, collect_asked, in_words, over_seeds, save_asked
from un2clip.evidence.scores import Scores, collect_scores, score_of
from un2clip.evidence.statistics import mean_difference, paired_difference

HOW = {"confidence": 0.95, "resamples": 2000, "seed": 0}
N = 1000


def scores(role: str, right: float, *, n: int = N, unit: str = "%", first: int = 0) -> Scores:
    """`right` % of n questions are answered rightly, beginning with the one called `first`."""
    wanted = {(first + i) % n for i in range(round(right * n / 100))}
    items = tuple(Item(id=f"q{i}", type="all", value=float(i in wanted)) for i in range(n))
    return Scores(
        benchmark="b", role=role, method=role, unit=unit, protocol="p", data_sha256="d", encoder_sha256=role,
        items=items,
    )  # fmt: skip


def pairs(*differences: float, reference: float = 40.0, n: int = N) -> dict[int, tuple[Scores, Scores]]:
    return {
        seed: (scores("reference", reference, n=n), scores("tuned", reference + each, n=n))
        for seed, each in enumerate(differences)
    }


def test_a_table_by_hand() -> None:
    """Four seeds of a pilot: +0.4 (-1.4 to +2.3) over the seeds, with Student's 3.182 of three degrees of freedom."""
    found = over_seeds(pairs(0.4, 0.5, -1.0, 1.8), **HOW)
    assert (found.reference, found.tuned) == (pytest.approx(40.0), pytest.approx(40.425))
    assert [each.difference for each in found.seeds] == pytest.approx([0.4, 0.5, -1.0, 1.8])
    deviation = (sum((x - 0.425) ** 2 for x in (0.4, 0.5, -1.0, 1.8)) / 3) ** 0.5
    assert found.spread == pytest.approx(deviation) == pytest.approx(1.1442, abs=1e-4)
    half = 3.18245 * deviation / 2
    assert (found.low, found.high) == (pytest.approx(0.425 - half, abs=1e-4), pytest.approx(0.425 + half, abs=1e-4))
    assert found.difference.mean == pytest.approx(0.425) and found.reading == "noise"


@pytest.mark.parametrize(
    ("differences", "reading", "words"),
    [
        ((5.0,), "unknown", "the spread over language models is unknown: one was trained"),
        ((5.0, 5.2), "better", "better, beyond the spread over 2 language models"),
        ((-5.0, -5.2), "worse", "worse, beyond the spread over 2 language models"),
        ((3.0, 1.0, 2.0), "noise", "nothing shown: the interval over language models holds 0"),
        ((0.5, 0.0, 2.5), "noise", "nothing shown: no larger than the spread over 3 language models"),
        # over eight seeds Student's interval excludes 0 (+0.2 to +2.8), and yet a seed scatters by more than that
        ((0.0, 3.0) * 4, "noise", "nothing shown: no larger than the spread over 8 language models"),
        ((0.0, 0.0, 0.0), "noise", "nothing shown: no larger than the spread over 3 language models"),
    ],
)
def test_nothing_smaller_than_the_spread_is_a_gain(differences, reading: str, words: str) -> None:
    found = over_seeds(pairs(*differences), **HOW)
    assert (found.reading, in_words(found)) == (reading, words)
    if len(differences) == 8:
        assert found.low is not None and found.low > 0 and not found.difference.is_noise


def test_few_questions_show_nothing_however_alike_the_seeds_are() -> None:
    """Every seed gains the same three of thirty questions: a coin does that too."""
    found = over_seeds(pairs(10.0, 10.0, 10.0, n=30), **HOW)
    assert found.spread == 0.0 and found.difference.is_noise and found.reading == "noise"
    assert in_words(found) == "nothing shown: the interval over questions holds 0"


def test_the_same_encoder_differs_by_exactly_nothing() -> None:
    found = over_seeds({0: (scores("reference", 55.5), replace(scores("reference", 55.5), role="tuned"))}, **HOW)
    assert (found.difference.mean, found.difference.changed) == (0, 0)
    room = 100 * (1 - 0.025 ** (1 / found.difference.n))  # for a change that these questions did not meet
    assert (found.difference.low, found.difference.high) == pytest.approx((-room, room))


def grouped(rng: np.random.Generator, share: float) -> list[Item]:
    """Twenty groups of two rows and two columns, right or wrong at random."""
    return [
        Item(id=f"{group}@q{row}-i{column}", type="all", value=float(rng.random() < share))
        for group in range(20)
        for row in range(2)
        for column in range(2)
    ]


@pytest.mark.parametrize("unit", ["%", "% of groups", "MME"])
def test_interval_over_questions_is_that_of_a_naive_bootstrap(unit: str) -> None:
    """A group is drawn with the answers of all assistants to it, and each draw is scored anew."""
    rng = np.random.default_rng(0)
    given = [(grouped(rng, 0.7), grouped(rng, 0.85)) for _ in range(3)]
    found = mean_difference(given, unit=unit, confidence=0.9, resamples=20_000, seed=0)

    def drawn(groups: np.ndarray) -> float:
        """The mean of the three differences, of these groups, each called by its place."""
        return fmean(
            score_of(part(after, groups), unit) - score_of(part(before, groups), unit) for before, after in given
        )

    def part(items: list[Item], groups: np.ndarray) -> list[Item]:
        return [
            replace(item, id=f"{place}@{item.id.partition('@')[2]}")
            for place, group in enumerate(groups)
            for item in items[4 * group : 4 * group + 4]
        ]

    assert found.mean == pytest.approx(drawn(np.arange(20))) and found.n == 20
    naive = [drawn(rng.integers(20, size=20)) for _ in range(500)]
    low, high = np.quantile(naive, [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_one_pair_alone_is_a_paired_difference() -> None:
    """Also of items whose unit lays equal samples together."""
    rng = np.random.default_rng(1)
    before, after = grouped(rng, 0.6), grouped(rng, 0.8)
    how = {"confidence": 0.9, "resamples": 20_000, "seed": 0}
    for unit in ("% of groups", "%"):
        alone = paired_difference(before, after, unit=unit, **how)
        joined = mean_difference([(before, after)] * 2, unit=unit, **how)
        assert (joined.mean, joined.n, joined.changed) == (pytest.approx(alone.mean), alone.n, alone.changed)
        assert (joined.low, joined.high) == pytest.approx((alone.low, alone.high), abs=1.0)


def test_scores_that_do_not_fit_are_refused() -> None:
    """Of two seeds, too, and not only of two roles."""
    fit = pairs(1.0, 1.0)
    for changes, why in (({"data_sha256": "e"}, "data_sha256 differs"), ({"protocol": "q"}, "in different ways")):
        before, after = (replace(each, **changes) for each in fit[1])
        with pytest.raises(UserError, match=f"b: the answers of two assistants cannot be compared: .*{why}"):
            over_seeds({0: fit[0], 1: (before, after)}, **HOW)
    with pytest.raises(ValueError, match="the same items in each pair, got 0 pairs"):
        mean_difference([], unit="%", **HOW)


def test_files_of_assistants_are_read_back(tmp_path: Path) -> None:
    """By what is in them, whatever their folders are called; scores of encoders beside them stay apart."""
    given = pairs(1.0, 2.0)
    for seed, pair in given.items():
        for place, each in enumerate(pair):
            save_asked(each, seed, each.role, tmp_path / f"asked/{seed}{place}")
    scores("reference", 10.0).save(tmp_path / "reference.json")
    assert collect_asked([tmp_path]) == {"b": given}
    assert collect_scores([tmp_path])["b"].keys() == {"reference"}
    assert collect_asked([tmp_path], {"reference": "reference", "tuned": "tuned"}) == {"b": given}
    with pytest.raises(UserError, match=r"\(tuned\) reads encoder tuned, and this is about another; run `assistant`"):
        collect_asked([tmp_path], {"reference": "reference", "tuned": "another"})
    save_asked(given[0][0], 0, "reference", tmp_path / "again")
    with pytest.raises(UserError, match=r"two files of reference, seed 0, on b; the second is .*asked/00/asked.json"):
        collect_asked([tmp_path])
    (tmp_path / f"again/{ASKED}").unlink()
    (tmp_path / f"asked/11/{ASKED}").unlink()
    with pytest.raises(UserError, match="b has no answers of the tuned assistant of seed 1; run `ask` for it"):
        collect_asked([tmp_path])
    content = json.loads((tmp_path / f"asked/10/{ASKED}").read_text())
    for changed in ({"language_seed": "1"}, {"read_sha256": None}):
        (tmp_path / f"asked/10/{ASKED}").write_text(json.dumps(content | changed))
        with pytest.raises(UserError, match="does not say the seed of its language model and its encoder"):
            collect_asked([tmp_path])
