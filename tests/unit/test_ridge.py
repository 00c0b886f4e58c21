"""The ridge classifier: scikit-learn's RidgeCV is the oracle."""

import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import one_hot

from un2clip.evaluation.ridge import Ridge

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def drawn(n: int, d: int, seed: int, signal: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unequal mean and spread, correlated; three classes that lie along one direction of them."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (n,), generator=rng)
    features = torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng)
    features += signal * classes[:, None] * torch.randn(d, generator=torch.Generator().manual_seed(1))
    return features * torch.linspace(0.1, 30, d) + torch.linspace(-5, 50, d), classes


@pytest.mark.parametrize(("n", "d", "signal"), [(300, 20, 1.0), (60, 200, 9.0), (40, 39, 3.0), (50, 3, 0.0)])
def test_equals_scikit_learns_choice_and_classes(n: int, d: int, signal: float) -> None:
    """The same penalty and the same classes, with more samples than features and with fewer."""
    (train, classes), (test, _) = drawn(n, d, 2, signal), drawn(500, d, 3, signal)
    scaler = StandardScaler().fit(train.double().numpy())
    theirs = RidgeCV(PENALTIES).fit(scaler.transform(train.double().numpy()), one_hot(classes).double().numpy())
    ridge = Ridge(train, PENALTIES)
    assert ridge.choose(classes) == theirs.alpha_
    expected = theirs.predict(scaler.transform(test.double().numpy())).argmax(1)
    assert ridge.classify(classes, test).tolist() == expected.tolist()
    assert len(set(expected)) > 1 or not signal


def test_a_feature_that_holds_the_label_is_read() -> None:
    """Among noise, every class of others is right; through a linear map of one-hot labels."""
    rng = torch.Generator().manual_seed(0)
    classes = torch.randint(5, (900,), generator=rng)
    hidden = torch.cat([one_hot(classes).float(), torch.randn(900, 20, generator=rng)], dim=1)
    features = hidden @ torch.randn(25, 25, generator=rng)
    ridge = Ridge(features[:400], PENALTIES)
    assert ridge.classify(classes[:400], features[400:]).tolist() == classes[400:].tolist()


@pytest.mark.parametrize("d", [10, 700])
def test_noise_is_read_at_chance(d: int) -> None:
    """Features without the label: the number of right classes lies in the binomial's middle 99.9 %."""
    rng = torch.Generator().manual_seed(d)
    classes, features = torch.randint(4, (2500,), generator=rng), torch.randn(2500, d, generator=rng)
    right = (Ridge(features[:500], PENALTIES).classify(classes[:500], features[500:]) == classes[500:]).sum().item()
    low, high = binom.interval(0.999, 2000, 0.25)
    assert low <= right <= high


def test_what_does_not_vary_is_not_read() -> None:
    """A feature that is constant but for float32's last bit takes no part; of nothing, the majority is read."""
    train, classes = drawn(100, 5, 0, 2.0)
    test, _ = drawn(50, 5, 1, 2.0)
    constant = torch.tensor([1000.0, 1000.00006]).repeat(50)[:, None]
    assert len(constant.unique()) == 2
    found = Ridge(torch.cat([train, constant], dim=1), PENALTIES).classify(
        classes, torch.cat([test, torch.randn(50, 1) * 1e6], dim=1)
    )
    assert found.tolist() == Ridge(train, PENALTIES).classify(classes, test).tolist()
    majority = torch.tensor([0, 2, 2])
    assert Ridge(torch.full((3, 2), 0.1), PENALTIES).classify(majority, torch.randn(4, 2)).tolist() == [2] * 4
