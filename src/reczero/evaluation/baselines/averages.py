"""Constants and averages as of the moment before. A model that does not beat these has learned nothing of use."""

import numpy as np
import polars as pl

from reczero.evaluation.predictor import Baseline, Forecast


class GlobalMedian(Baseline):
    """The median training rating: the best constant for MAE."""

    name = "global-median"

    def _learn(self, rows: pl.DataFrame) -> None:
        self.constant = float(np.median(rows["rating"].to_numpy()))

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(np.full(examples.height, self.constant))


class _MeanBased(Baseline):
    """Shared: the mean training rating, which also stands in for an average that does not exist yet."""

    def _learn(self, rows: pl.DataFrame) -> None:
        self.mean = float(rows["rating"].to_numpy().mean())

    def _average(self, examples: pl.DataFrame, column: str) -> np.ndarray:
        return examples[column].cast(pl.Float64).fill_null(self.mean).fill_nan(self.mean).to_numpy()


class GlobalMean(_MeanBased):
    """The mean training rating: the best constant for RMSE."""

    name = "global-mean"

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(np.full(examples.height, self.mean))


class UserAverage(_MeanBased):
    """The user's average as of the moment before; the global mean for a user without a past."""

    name = "user-average"

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(self._average(examples, "user_avg"))


class ItemAverage(_MeanBased):
    """The item's average as of the moment before; the global mean for an item without a past."""

    name = "item-average"

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(self._average(examples, "item_avg"))


class Additive(_MeanBased):
    """User average + item average - global mean, as of the moment before, clipped to the scale."""

    name = "additive"

    def predict(self, examples: pl.DataFrame) -> Forecast:
        both = self._average(examples, "user_avg") + self._average(examples, "item_avg") - self.mean
        return Forecast(np.clip(both, self.scale.min, self.scale.max))


class AverageRegression(_MeanBased):
    """Least squares on the two averages as of the moment before, clipped to the scale."""

    name = "average-regression"
    combines = True
    columns = ("user_avg", "item_avg")

    def _design(self, examples: pl.DataFrame) -> np.ndarray:
        averages = [self._average(examples, column) for column in self.columns]
        return np.stack([np.ones(examples.height), *averages], axis=1)

    def _learn(self, rows: pl.DataFrame) -> None:
        super()._learn(rows)
        self.weights = np.linalg.lstsq(self._design(rows), rows["rating"].to_numpy(), rcond=None)[0]

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(np.clip(self._design(examples) @ self.weights, self.scale.min, self.scale.max))
