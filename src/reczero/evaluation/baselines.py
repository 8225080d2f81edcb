"""What anybody could predict without a language model. A model that does not beat these has learned nothing of use."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
import polars as pl

from reczero.reasoning.scale import Scale


class Baseline(ABC):
    """A predictor that is fitted on training rows and answers every row.

    `predict` sees a row's ids, time and as-of columns (`user_avg`, `item_avg`, `user_count`, `item_count`: everything
    strictly earlier than the row) and never its rating.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(self, train: pl.DataFrame, scale: Scale) -> Self:
        """Learn from training examples (with `rating`) and return self."""

    @abstractmethod
    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        """(rows,) finite floats on the scale, in the order of the rows; unknown users and items included."""


class GlobalMedian(Baseline):
    """The median training rating: the best constant for MAE."""

    name = "global-median"

    def fit(self, train: pl.DataFrame, scale: Scale) -> Self:
        self.constant = float(np.median(train["rating"].to_numpy()))
        return self

    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        return np.full(examples.height, self.constant)


class _MeanBased(Baseline):
    """Shared: the mean training rating, which also stands in for an average that does not exist yet."""

    def fit(self, train: pl.DataFrame, scale: Scale) -> Self:
        self.scale = scale
        self.mean = float(train["rating"].to_numpy().mean())
        return self

    def _average(self, examples: pl.DataFrame, column: str) -> np.ndarray:
        return examples[column].cast(pl.Float64).fill_null(self.mean).fill_nan(self.mean).to_numpy()


class GlobalMean(_MeanBased):
    """The mean training rating: the best constant for RMSE."""

    name = "global-mean"

    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        return np.full(examples.height, self.mean)


class UserAverage(_MeanBased):
    """The user's average as of the moment before; the global mean for a user without a past."""

    name = "user-average"

    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        return self._average(examples, "user_avg")


class ItemAverage(_MeanBased):
    """The item's average as of the moment before; the global mean for an item without a past."""

    name = "item-average"

    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        return self._average(examples, "item_avg")


class Additive(_MeanBased):
    """User average + item average - global mean, as of the moment before, clipped to the scale."""

    name = "additive"

    def predict(self, examples: pl.DataFrame) -> np.ndarray:
        both = self._average(examples, "user_avg") + self._average(examples, "item_avg") - self.mean
        return np.clip(both, self.scale.min, self.scale.max)


BASELINES: tuple[type[Baseline], ...] = (GlobalMean, GlobalMedian, UserAverage, ItemAverage, Additive)
FALLBACK = GlobalMedian.name  # a row without an answer is scored as if this baseline had answered it
ROUNDED = "-rounded"


def is_baseline(name: str) -> bool:
    """Whether a model of this name is one of ours to compare against, rounded or not."""
    return name.removesuffix(ROUNDED) in {baseline.name for baseline in BASELINES}


def rounded(prediction: np.ndarray, scale: Scale) -> np.ndarray:
    """The nearest rating on the scale's grid, halves upwards: what a mean-minded predictor says when MAE counts."""
    grid = np.asarray(scale.grid())
    return grid[np.clip(np.floor((prediction - scale.min) / scale.step + 0.5).astype(int), 0, len(grid) - 1)]


def predict_all(train: pl.DataFrame, examples: pl.DataFrame, scale: Scale) -> dict[str, np.ndarray]:
    """name -> (rows,) of every baseline, and of its rounded form `name-rounded` where that differs anywhere."""
    hidden = examples.drop("rating", strict=False)
    predictions = {}
    for baseline in BASELINES:
        plain = baseline().fit(train, scale).predict(hidden)
        predictions[baseline.name] = plain
        on_grid = rounded(plain, scale)
        if not np.allclose(on_grid, plain):
            predictions[baseline.name + ROUNDED] = on_grid
    return predictions
