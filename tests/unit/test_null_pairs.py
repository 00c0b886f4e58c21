"""The null pairs: neither encoder is better in them, and a gate that is too lax would show in a rate."""

from dataclasses import replace
from statistics import mean

from tests.null_pairs import Population, of_population, of_scores, rate, worst_of_losses
from tests.retrained import judge
from un2clip.evidence.items import Item
from un2clip.evidence.scores import Scores

HOW = {"resamples": 500, "confidence": 0.95}


def test_a_population_loses_what_its_bound_says() -> None:
    """Over 2,000 pairs the mean gain is the bound, within five standard errors."""
    population = Population(n=100, rise=0.1, fall=0.2)
    gains = [after.score - before.score for before, after in of_population(population, 2000, seed=0)]
    assert population.bound == -10.0 and abs(mean(gains) + 10.0) < 5 * 100 * (0.29 / 100 / 2000) ** 0.5


def test_measured_scores_lose_their_difference() -> None:
    """30 points between two encoders are none in the null pairs; samples keep their parts, and ids stay distinct."""
    items = [Item(id=f"{i}@{part}", type=part, value=float(i < 30)) for i in range(100) for part in "ab"]
    wrong = tuple(replace(item, value=0.0) for item in items)
    fields = {"benchmark": "x", "unit": "%", "protocol": "", "data_sha256": "d", "encoder_sha256": "e", "method": "m"}
    tuned = Scores(role="tuned", items=tuple(items), **fields)
    pairs = list(of_scores(Scores(role="reference", items=wrong, **fields), tuned, 500, seed=0))
    gains = [after.score - before.score for before, after in pairs]
    assert tuned.score == 30.0 and abs(mean(gains)) < 5 * 100 * (0.3 / 100 / 500) ** 0.5
    for before, after in pairs[:3]:
        assert [item.id for item in before.items] == [item.id for item in after.items]
        assert len({item.sample for item in after.items}) == 100 and len(after.items) == 200


def test_the_gate_seldom_promotes_without_a_gain() -> None:
    """Of 300 null pairs at most 5 %; a rule that asks for one point less than there is lets most pass."""
    population = Population(n=135, rise=0.15, fall=0.15)
    found = rate("null", population.bound, of_population(population, 300, seed=0), 300, **HOW)
    assert found.promoted <= 15 and found.many == 300
    lax = rate("lax", -20.0, of_population(population, 100, seed=0), 100, **HOW)
    assert lax.promoted > 90 and "margin of 20" in lax.row


def test_two_encoders_in_a_row_are_judged_both_ways() -> None:
    """By hand: of three pairs one is 40 of 100 better, whichever stands first, one alike, one apart in 10 items."""
    fields = {"benchmark": "x", "unit": "%", "protocol": "", "data_sha256": "d", "method": "m", "role": "tuned"}

    def scores(sha256: str, *right: range) -> Scores:
        values = [float(any(i in each for each in right)) for i in range(100)]
        items = tuple(Item(id=str(i), type="all", value=value) for i, value in enumerate(values))
        return Scores(items=items, encoder_sha256=sha256, **fields)

    some, more = range(20), range(60)
    found = judge([scores("a", more), scores("b", some), scores("c", some), scores("d", some),
                   scores("e", range(20)), scores("f", range(15), range(20, 25))], **HOW)  # fmt: skip
    assert (found.pairs, found.promoted) == (3, 1)
    assert abs(found.changed - (0.4 + 0.0 + 0.1) / 3) < 1e-9
    assert abs(found.noise - 100 * (0.004**0.5 + 0.001**0.5) / 3) < 1e-9
    assert found.sentence.startswith("1 of 6 judgements promoted: 16.7 % (95 % interval 0.4 to 45.3, 3 independent")


def test_what_is_added_up_is_what_is_drawn() -> None:
    """The worst share of 30 samples: the rate of 400 pairs is within five standard errors of the sum over outcomes."""
    share, err = worst_of_losses(30, 0.95)
    population = Population(n=30, rise=0.0, fall=share)
    drawn = of_population(population, 400, seed=0)
    found = rate("worst", population.bound, drawn, 400, resamples=4000, confidence=0.95)
    assert 0.0 < err < 0.05 and abs(found.promoted / 400 - err) < 5 * (err / 400) ** 0.5
