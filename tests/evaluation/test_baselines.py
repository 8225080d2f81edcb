"""What every baseline promises, whatever it is made of; and the figures of ours."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from reczero.evaluation import baselines
from reczero.reasoning.scale import Scale

SCALE = Scale(1, 5, 1)
TRAIN = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["i", "j", "i"], "rating": [5.0, 4.0, 1.0]})
ROWS = pl.DataFrame(
    {
        "example_id": ["known", "new user", "new item", "all new", "happy"],
        "user_id": ["u", "w", "u", "w", "v"],
        "item_id": ["i", "i", "k", "k", "i"],
        "user_avg": [4.5, None, 4.5, None, 5.0],
        "item_avg": [3.0, 3.0, None, None, 5.0],
        "user_count": [2, 0, 2, 0, 9],
        "item_count": [2, 2, 0, 0, 9],
    }
)
MEAN = 10 / 3


class BaselineContract:
    """Inherit, and set `make`: what compares itself with us must answer every row, the same way every time."""

    make: Callable[[], Any]

    def predict(self, rows: pl.DataFrame = ROWS) -> np.ndarray:
        return type(self).make().fit(TRAIN, SCALE).predict(rows)

    def test_answers_every_row_on_the_scale(self):
        prediction = self.predict()
        assert prediction.shape == (ROWS.height,)
        assert np.isfinite(prediction).all()
        assert (prediction >= SCALE.min).all() and (prediction <= SCALE.max).all()

    def test_is_deterministic_and_blind_to_row_order(self):
        np.testing.assert_array_equal(self.predict(), self.predict())
        np.testing.assert_allclose(self.predict(ROWS.reverse()), self.predict()[::-1])

    def test_does_not_see_the_truth(self):
        for rating in (1.0, 5.0):
            np.testing.assert_array_equal(self.predict(ROWS.with_columns(rating=pl.lit(rating))), self.predict())

    def test_no_rows(self):
        assert self.predict(ROWS.clear()).shape == (0,)

    def test_only_new_users_and_items(self):
        nothing_known = ROWS.with_columns(user_avg=pl.lit(None), item_avg=pl.lit(None))  # columns of type Null
        assert np.isfinite(self.predict(nothing_known)).all()


class TestGlobalMean(BaselineContract):
    make = baselines.GlobalMean

    def test_figures(self):
        assert self.predict() == pytest.approx([MEAN] * 5)


class TestGlobalMedian(BaselineContract):
    make = baselines.GlobalMedian

    def test_figures(self):
        assert list(self.predict()) == [4.0] * 5


class TestUserAverage(BaselineContract):
    make = baselines.UserAverage

    def test_figures(self):
        assert self.predict() == pytest.approx([4.5, MEAN, 4.5, MEAN, 5.0])


class TestItemAverage(BaselineContract):
    make = baselines.ItemAverage

    def test_figures(self):
        assert self.predict() == pytest.approx([3.0, 3.0, MEAN, MEAN, 5.0])


class TestAdditive(BaselineContract):
    make = baselines.Additive

    def test_figures(self):
        assert self.predict() == pytest.approx([4.5 + 3 - MEAN, 3.0, 4.5, MEAN, 5.0])  # the last is clipped


def test_the_contract_is_tested_for_every_baseline():
    tested = {kind.make for kind in BaselineContract.__subclasses__()}
    assert tested == set(baselines.BASELINES)


@pytest.mark.parametrize(
    ("scale", "given", "expected"),
    [
        (Scale(1, 5, 1), [1.49, 3.5, 4.5, 9, -3], [1, 4, 5, 5, 1]),
        (Scale(0.5, 5, 0.5), [0.6, 0.75, 3.3], [0.5, 1.0, 3.5]),
        (Scale(1, 10, 1), [9.6], [10]),
    ],
)
def test_rounded(scale: Scale, given: list[float], expected: list[float]):
    assert list(baselines.rounded(np.array(given), scale)) == expected


def test_rounded_forms_only_where_they_differ():
    names = list(baselines.predict_all(TRAIN, ROWS, SCALE))
    assert "global-mean-rounded" in names and "global-median-rounded" not in names
    assert all(baselines.is_baseline(name) for name in names)
    assert not baselines.is_baseline("reczero") and not baselines.is_baseline("untrained")
