"""How probable each rating is, by an estimate and how widely the user's ratings spread: a logistic regression."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from reczero.reasoning import Scale

Numbers = Sequence[float] | np.ndarray
SMOOTH = 1e-4  # probability that all ratings share, so that one never seen in training is not impossible


class Belief:
    """Estimates and spreads -> probabilities of the scale's ratings.

    The log-odds are cubic in the estimate and quadratic in the spread of the user's ratings, with their product.
    """

    def __init__(self, regression: Pipeline | None, seen: np.ndarray, ratings: int, usual: float):
        """regression: over the places `seen` on the scale's grid of so many ratings; None where that is one alone.
        usual: the spread of a user whose own is unknown."""
        self._regression, self._seen, self._ratings, self._usual = regression, seen, ratings, usual

    @classmethod
    def fit(cls, estimates: Numbers, spreads: Sequence[float | None], ratings: np.ndarray, scale: Scale) -> Self:
        """Of n training rows, whose ratings are brought onto the scale's grid."""
        grid = scale.grid()
        nearest = np.array([grid.index(scale.nearest(rating)) for rating in ratings.tolist()])
        seen = np.unique(nearest)
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=1000)) if len(seen) > 1 else None
        known = [spread for spread in spreads if spread is not None]
        usual = float(np.mean(known)) if known else 0.0  # of no known one the features are constants
        if regression:
            regression.fit(_features(estimates, spreads, usual), nearest)
        return cls(regression, seen, len(grid), usual)

    def of(self, estimates: Numbers, spreads: Sequence[float | None]) -> np.ndarray:
        """(n, ratings), each row sums to 1."""
        chances = np.full((len(estimates), self._ratings), SMOOTH / self._ratings)
        if len(chances):
            shares = (
                self._regression.predict_proba(_features(estimates, spreads, self._usual)) if self._regression else 1.0
            )
            chances[:, self._seen] += (1 - SMOOTH) * shares
        return chances


def _features(estimates: Numbers, spreads: Sequence[float | None], usual: float) -> np.ndarray:
    t = np.asarray(estimates, float)
    s = np.array([usual if spread is None else spread for spread in spreads])
    return np.stack([t, t**2, t**3, s, s * t, s**2], 1)
