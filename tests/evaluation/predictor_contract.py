"""What every predictor promises, to be inherited by the tests of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reczero.evaluation.predictor import Forecast
from reczero.reasoning.scale import Scale


class PredictorContract:
    """Inherit, and set `make` to what gives a fitted predictor: whatever is compared must answer every row (NaN where
    it has no answer), the same way every time, without the truth."""

    make: Callable[[], Any]
    rows: pl.DataFrame
    scale: Scale
    may_fail = False

    def load(self, kind: type, folder: Path) -> Any:
        return kind.load(folder)

    def forecast(self, rows: pl.DataFrame | None = None) -> Forecast:
        return type(self).make().predict(self.rows if rows is None else rows)

    def predict(self, rows: pl.DataFrame | None = None) -> np.ndarray:
        return self.forecast(rows).prediction

    def same(self, a: Forecast, b: Forecast) -> None:
        np.testing.assert_array_equal(a.prediction, b.prediction)
        assert (a.distribution is None) == (b.distribution is None)
        if a.distribution is not None:
            np.testing.assert_allclose(a.distribution, b.distribution, rtol=1e-5)  # batches round otherwise

    def test_answers_every_row_on_the_scale(self):
        """Unknown users, unknown items, and rows without any past."""
        prediction = self.predict()
        assert prediction.shape == (self.rows.height,)
        given = prediction[np.isfinite(prediction)]
        assert self.may_fail or len(given) == self.rows.height
        assert (given >= self.scale.min).all() and (given <= self.scale.max).all()

    def test_distributions_sum_to_one(self):
        distribution = self.forecast().distribution
        if distribution is not None:
            assert distribution.shape == (self.rows.height, len(self.scale.grid()))
            known = distribution[np.isfinite(distribution).all(1)]
            assert (known >= 0).all()
            np.testing.assert_allclose(known.sum(1), 1)

    def test_is_deterministic_and_blind_to_row_order(self):
        self.same(self.forecast(), self.forecast())
        backwards = self.forecast(self.rows.reverse())
        np.testing.assert_allclose(backwards.prediction, self.predict()[::-1])

    def test_does_not_see_the_truth(self):
        for rating in (1.0, 5.0):
            self.same(self.forecast(self.rows.with_columns(rating=pl.lit(rating))), self.forecast())

    def test_no_rows(self):
        assert self.predict(self.rows.clear()).shape == (0,)

    def test_answers_after_saving_and_loading_as_before(self, tmp_path: Path):
        made = type(self).make()
        made.save(tmp_path / "saved")
        self.same(self.load(type(made), tmp_path / "saved").predict(self.rows), self.forecast())
        assert not [
            path for path in (tmp_path / "saved").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")
        ]
