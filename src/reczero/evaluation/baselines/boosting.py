"""Gradient boosting on the as-of numbers of an example: the strongest honest opponents found so far.

By scikit-learn's histogram version (Friedman 2001; Ke et al. 2017), which of more than 10,000 rows holds a tenth back
to stop early by.
"""

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from reczero.evaluation.predictor import FEATURE, Baseline, Forecast

SEED = 0


class _Boosted(Baseline):
    features = True
    grid = {"learning_rate": (0.03, 0.1), "max_leaf_nodes": (7, 15, 31), "max_iter": (500,)}

    def _matrix(self, rows: pl.DataFrame) -> np.ndarray:
        if missing := [name for name in self._names if name not in rows.columns]:
            raise ValueError(f"no column {missing[0]}: rows need the numbers of reczero.evaluation.features")
        return rows.select(pl.col(self._names).cast(pl.Float64)).to_numpy()

    def _learn(self, rows: pl.DataFrame) -> None:
        given = [name for name in rows.columns if name.startswith(FEATURE)]
        # Without a single value there is nothing to cut at, and the library fails.
        self._names = [name for name in given if rows[name].cast(pl.Float64).fill_nan(None).count()]
        if not self._names:
            raise ValueError(f"no column begins with {FEATURE}: rows need the numbers of reczero.evaluation.features")
        self._fit(self._matrix(rows), rows["rating"].to_numpy())

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError


class Boosting(_Boosted):
    """Squared error: made for RMSE."""

    name = "boosting"

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self.model = HistGradientBoostingRegressor(random_state=SEED, **self.settings).fit(x, y)

    def predict(self, examples: pl.DataFrame) -> Forecast:
        if examples.is_empty():
            return Forecast(np.zeros(0))
        return Forecast(np.clip(self.model.predict(self._matrix(examples)), self.scale.min, self.scale.max))


class BoostingClasses(_Boosted):
    """A classifier over the ratings of the grid: its mean for RMSE, its median for MAE. A rating between two of the
    grid counts as the nearer one."""

    name = "boosting-classes"

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        grid = np.asarray(self.scale.grid())
        classes = np.abs(y[:, None] - grid).argmin(1)
        self.model = None
        self.seen = np.unique(classes)
        if len(self.seen) > 1:
            # What is held back to stop early is drawn by class: of a rating that occurs once, that can't be.
            alone = {"early_stopping": False} if np.bincount(classes)[self.seen].min() < 2 else {}
            model = HistGradientBoostingClassifier(random_state=SEED, **self.settings | alone)
            self.model = model.fit(x, classes)

    def predict(self, examples: pl.DataFrame) -> Forecast:
        grid = np.asarray(self.scale.grid())
        distribution = np.zeros((examples.height, len(grid)))
        if examples.height:
            shares = self.model.predict_proba(self._matrix(examples)) if self.model else 1.0
            distribution[:, self.seen] = shares
        return Forecast(distribution @ grid, distribution)
