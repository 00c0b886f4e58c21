"""A ridge classifier in closed form: regression to one-hot labels, the largest output wins.

Its penalty is the one with the least squared leave-one-out error, which follows from one decomposition of the features
without fitting again (Allen, Technometrics 16, 1974), as in scikit-learn's RidgeCV. All in float64 on the CPU, and
nothing is drawn, so the same features give the same classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class Ridge:
    """Classifiers of the same samples, which share the features' decomposition.

    The features are standardised by these samples; what varies by less than float32 resolves counts as constant.

    Args:
        features: (n, d), any float; d may be larger than n.
        penalties: P positive numbers, each multiplies the squared weights beside the sum of squared errors.
    """

    def __init__(self, features: Tensor, penalties: Sequence[float]) -> None:
        features = features.double()
        self.mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
        self.scale = torch.where(std > torch.finfo(torch.float32).eps * self.mean.abs(), std, torch.inf)
        standardised = self._standardised(features)
        self.axes = _principal_axes(standardised)
        self.along = standardised @ self.axes  # (n, r), columns orthogonal to each other
        self.penalties = penalties
        squares = self.along.square()
        self.shrink = 1 / (squares.sum(dim=0)[:, None] + torch.tensor(penalties, dtype=torch.float64))  # (r, P)
        self.leverage = squares @ self.shrink + 1 / len(features)  # (n, P); the intercept's is 1 / n

    def classify(self, classes: Tensor, features: Tensor) -> Tensor:
        """Learn the classes of the samples, and tell those of others.

        Args:
            classes: (n,) int64, from 0.
            features: (m, d) of the others.

        Returns:
            (m,) int64; of equal outputs the first class.
        """
        weights, errors = self._fit(classes)
        along = self._standardised(features.double()) @ self.axes
        return (along @ weights[:, errors.argmin()] + one_hot(classes).double().mean(dim=0)).argmax(dim=1)

    def choose(self, classes: Tensor) -> float:
        """The penalty whose squared leave-one-out error is least; the first of several."""
        return self.penalties[int(self._fit(classes)[1].argmin())]

    def _fit(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, P, K) and mean squared leave-one-out error (P,) of each penalty."""
        hot = one_hot(classes).double()
        target = hot - hot.mean(dim=0)
        weights = self.shrink[:, :, None] * (self.along.T @ target)[:, None]
        residual = target[:, None] - (self.along @ weights.flatten(1)).unflatten(1, weights.shape[1:])
        return weights, (residual / (1 - self.leverage)[:, :, None]).square().mean(dim=(0, 2))

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def _principal_axes(features: Tensor) -> Tensor:
    """Orthonormal axes (d, r) of centred features (n, d) along which they vary, from the smaller of both products."""
    n, d = features.shape
    squares, vectors = torch.linalg.eigh(features.T @ features if d <= n else features @ features.T)
    vary = squares > squares.max() * max(n, d) * torch.finfo(torch.float64).eps
    return vectors[:, vary] if d <= n else features.T @ vectors[:, vary] / squares[vary].sqrt()
