"""What every predictor promises, whatever it is made of; and the figures of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from predictor_contract import PredictorContract

from reczero.errors import UserError
from reczero.evaluation import baselines, metrics
from reczero.evaluation.predictor import Forecast
from reczero.reasoning.scale import Scale

SCALE = Scale(1, 5, 1)
TRAIN = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["i", "j", "i"], "rating": [5.0, 4.0, 1.0]}).with_columns(
    user_avg=pl.Series([None, 5.0, None], dtype=pl.Float64),
    item_avg=pl.Series([None, None, 5.0], dtype=pl.Float64),
    x_user_avg=pl.Series([None, 5.0, None], dtype=pl.Float32),
    x_item_count=pl.Series([0, 0, 1], dtype=pl.Float32),
    fact_item_mean=pl.Series([3.0, 4.0, 3.5]),
    fact_affinity=pl.Series([0.0, 0.5, -1.0]),
    fact_spread=pl.Series([None, 0.0, None], dtype=pl.Float64),
    fact_hint=pl.Series([None, 0.2, -0.3], dtype=pl.Float64),
)
ROWS = pl.DataFrame(
    {
        "example_id": ["known", "new user", "new item", "all new", "happy"],
        "user_id": ["u", "w", "u", "w", "v"],
        "item_id": ["i", "i", "k", "k", "i"],
        "user_avg": [4.5, None, 4.5, None, 5.0],
        "item_avg": [3.0, 3.0, None, None, 5.0],
        "user_count": [2, 0, 2, 0, 9],
        "item_count": [2, 2, 0, 0, 9],
        "x_user_avg": [4.5, None, 4.5, None, 5.0],
        "x_item_count": [2.0, 2.0, 0.0, 0.0, 9.0],
        "fact_item_mean": [3.0, 3.0, 3.6, None, 4.8],
        "fact_affinity": [0.5, 0.0, 0.5, 0.0, 0.6],
        "fact_spread": [0.7, None, 0.7, None, 0.2],
        "fact_hint": [-0.25, None, None, None, 0.1],
    }
)
MEAN = 10 / 3


class BaselineContract(PredictorContract):
    """Of what is fitted on rated rows."""

    rows, scale = ROWS, SCALE

    def test_only_new_users_and_items(self):
        nothing = self.rows.with_columns(user_avg=pl.lit(None), item_avg=pl.lit(None), x_user_avg=pl.lit(None))
        assert np.isfinite(self.predict(nothing)).all()  # columns of type Null

    def test_ratings_that_are_all_the_same(self):
        kind = type(type(self).make())
        same = kind().fit(TRAIN.with_columns(rating=pl.lit(4.0)), SCALE).predict(ROWS).prediction
        assert np.isfinite(same).all()

    def test_another_models_folder_is_refused(self, tmp_path: Path):
        type(self).make().save(tmp_path / "saved")
        other = baselines.GlobalMean if type(type(self).make()) is not baselines.GlobalMean else baselines.GlobalMedian
        with pytest.raises(UserError, match="holds"):
            other.load(tmp_path / "saved")


def fitted(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: baselines.baseline(name)(**settings).fit(TRAIN, SCALE)


class TestGlobalMean(BaselineContract):
    make = fitted("global-mean")

    def test_figures(self):
        assert self.predict() == pytest.approx([MEAN] * 5)


class TestGlobalMedian(BaselineContract):
    make = fitted("global-median")

    def test_figures(self):
        assert list(self.predict()) == [4.0] * 5


class TestUserAverage(BaselineContract):
    make = fitted("user-average")

    def test_figures(self):
        assert self.predict() == pytest.approx([4.5, MEAN, 4.5, MEAN, 5.0])


class TestItemAverage(BaselineContract):
    make = fitted("item-average")

    def test_figures(self):
        assert self.predict() == pytest.approx([3.0, 3.0, MEAN, MEAN, 5.0])


class TestAdditive(BaselineContract):
    make = fitted("additive")

    def test_figures(self):
        assert self.predict() == pytest.approx([4.5 + 3 - MEAN, 3.0, 4.5, MEAN, 5.0])  # the last is clipped


class TestAverageRegression(BaselineContract):
    make = fitted("average-regression")

    def test_finds_a_plane(self):
        rng = np.random.default_rng(0)
        rows = pl.DataFrame({"user_avg": rng.uniform(2, 4, 50), "item_avg": rng.uniform(2, 4, 50)})
        rows = rows.with_columns(rating=0.5 + 0.25 * pl.col("user_avg") + 0.5 * pl.col("item_avg"))
        model = baselines.AverageRegression().fit(rows, SCALE)
        np.testing.assert_allclose(model.predict(rows).prediction, rows["rating"].to_numpy())


class TestAffinity(BaselineContract):
    make = fitted("affinity")

    def test_figures(self):
        assert self.predict() == pytest.approx([3.5, 3.0, 4.1, MEAN, 5.0])


class TestAffinityHint(BaselineContract):
    make = fitted("affinity-hint")

    def test_figures(self):
        assert self.predict() == pytest.approx([3.25, 3.0, 4.1, MEAN, 5.0])


class TestAffinityClasses(BaselineContract):
    make = fitted("affinity-classes")


class TestAffinityHintClasses(BaselineContract):
    make = fitted("affinity-hint-classes")

    def test_it_is_the_belief_of_the_sum(self):
        from reczero.evaluation.belief import Belief

        belief = Belief.fit([3.0, 4.7, 2.2], [None, 0.0, None], TRAIN["rating"].to_numpy(), SCALE)
        want = belief.of([3.25, 3.0, 4.1, MEAN, 5.0], [0.7, None, 0.7, None, 0.2])
        assert np.allclose(self.forecast().distribution, want)


class TestBiasedMF(BaselineContract):
    make = fitted("biased-mf", n_factors=3)

    def test_nobody_known_is_the_mean(self):
        assert self.predict()[3] == pytest.approx(MEAN)


class TestSVDPlusPlus(BaselineContract):
    make = fitted("svd++", n_factors=3)


class TestItemKNN(BaselineContract):
    make = fitted("item-knn", k=5)


class TestUserKNN(BaselineContract):
    make = fitted("user-knn", k=5)


class TestBoosting(BaselineContract):
    make = fitted("boosting", max_iter=5)

    def test_rows_without_its_numbers_are_refused(self):
        with pytest.raises(ValueError, match="no column x_user_avg"):
            self.predict(ROWS.drop("x_user_avg"))


class TestBoostingClasses(BaselineContract):
    make = fitted("boosting-classes", max_iter=5)

    def test_a_rating_that_occurs_once_among_many(self):
        rng = np.random.default_rng(0)
        rows = pl.DataFrame({"x_a": rng.random(10_500), "rating": np.r_[1.0, rng.integers(2, 6, 10_499).astype(float)]})
        model = baselines.baseline("boosting-classes")(max_iter=2).fit(rows, SCALE)
        assert np.isfinite(model.predict(rows[:5]).prediction).all()

    def test_only_ratings_that_were_seen(self):
        distribution = self.forecast().distribution
        assert distribution is not None and (distribution[:, [1, 2]] == 0).all()


def test_the_contract_is_tested_for_every_baseline():
    tested = {type(kind.make()).name for kind in BaselineContract.__subclasses__()}
    assert tested == set(baselines.NAMES) - {"narre"}


def test_the_library_scores_as_we_do():
    """Surprise's own accuracy functions on the same predictions."""
    from surprise import accuracy
    from surprise.prediction_algorithms.predictions import Prediction

    rng = np.random.default_rng(0)
    truth, given = rng.integers(1, 6, 400).astype(float), rng.uniform(1, 5, 400)
    theirs = [Prediction("u", "i", t, g, {}) for t, g in zip(truth, given, strict=True)]
    assert metrics.mae(truth, given) == pytest.approx(accuracy.mae(theirs, verbose=False))
    assert metrics.rmse(truth, given) == pytest.approx(accuracy.rmse(theirs, verbose=False))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "surprise", None)
    monkeypatch.delitem(sys.modules, "reczero.evaluation.baselines.collaborative", raising=False)
    with pytest.raises(UserError, match=r"needs surprise: pip install 'reczero\[baselines\]'"):
        baselines.baseline("biased-mf")
    with pytest.raises(UserError, match="no baseline 'nothing'"):
        baselines.baseline("nothing")


@pytest.mark.parametrize("name", ["boosting", "boosting-classes"])
def test_a_number_that_no_fitted_row_has(name: str):
    """Where every item has a creator of its own, nothing is known of any of them."""
    train = pl.DataFrame({"x_a": [1.0, 2.0, 3.0], "x_creator": [None] * 3, "rating": [1.0, 3.0, 5.0]})
    train = train.with_columns(pl.col("x_creator").cast(pl.Float64).fill_null(float("nan")))
    rows = pl.DataFrame({"x_a": [1.0, 2.0], "x_creator": [0.5, None]})
    assert np.isfinite(baselines.baseline(name)(max_iter=2).fit(train, SCALE).predict(rows).prediction).all()


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
    assert np.isnan(baselines.rounded(np.array([np.nan]), scale)).all()


def test_the_median_of_a_distribution_errs_least():
    rng = np.random.default_rng(0)
    distribution = rng.dirichlet(np.full(5, 0.5), 200)
    grid = np.asarray(SCALE.grid())
    expected = np.abs(grid[None, :, None] - grid[None, None]) @ distribution[:, :, None]  # (rows, candidates, 1)
    best = expected[..., 0].min(1)
    chosen = baselines.median_of(distribution, SCALE)
    np.testing.assert_allclose(expected[np.arange(200), chosen.astype(int) - 1, 0], best)
    assert np.isnan(baselines.median_of(np.full((1, 5), np.nan), SCALE)).all()


def test_l1_optimal_forms_only_where_they_differ():
    names = list(baselines.predict_all(TRAIN, ROWS, SCALE))
    assert "global-mean-rounded" in names and "global-median-rounded" not in names
    assert all(baselines.is_baseline(name) for name in names)
    assert baselines.is_baseline("biased-mf-refitted-rounded") and baselines.is_baseline("boosting-classes-median")
    assert not baselines.is_baseline("reczero") and not baselines.is_baseline("untrained")
    distribution = np.array([[0.6, 0, 0, 0, 0.4]])
    given = baselines.forms("m", Forecast(np.array([2.6]), distribution), SCALE)
    assert {name: values.tolist() for name, values in given.items()} == {"m": [2.6], "m-median": [1.0]}
