"""Metrics by hand, intervals by simulation."""

import numpy as np
import pytest

from reczero.evaluation import metrics

NAN = float("nan")


def test_errors_computed_by_hand():
    truth, prediction = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 5, 3])  # errors 1, 0, 2, 1
    assert metrics.mae(truth, prediction) == 1.0
    assert metrics.rmse(truth, prediction) == pytest.approx(np.sqrt(6 / 4))


def test_failures_are_scored_by_the_fallback_and_counted():
    truth, prediction = np.array([1.0, 5, 3, 4]), np.array([NAN, NAN, 3, 4])  # errors with fallback 4: 3, 1, 0, 0
    score = metrics.score(truth, {"m": prediction}, np.array(["a", "a", "b", "b"]), fallback=4)["m"]
    assert score.rows == 4
    assert score.mae.value == 1.0
    assert score.rmse.value == pytest.approx(np.sqrt(10 / 4))
    assert score.parse_rate == 0.5
    assert score.mode_share == 0.5  # "no answer" is a value, though the fallback would make three fours


def test_infinite_predictions_are_failures():
    assert metrics.parse_rate(np.array([np.inf, -np.inf, NAN, 1.0])) == 0.25


@pytest.mark.parametrize(
    ("prediction", "share"),
    [([1, 1, 1, 1], 1.0), ([1, 2, 2, 3], 0.5), ([NAN, NAN, NAN, 3], 0.75), ([0.1 + 0.2, 0.3, 4, 5], 0.5)],
)
def test_mode_share(prediction: list[float], share: float):
    assert metrics.mode_share(np.array(prediction)) == share


def test_resampled_sums_are_sums_of_whole_users():
    users = np.array(["b", "a", "b"])
    sums = metrics.resampled_sums(users, np.array([[1.0, 10.0], [1, 100], [1, 20]]), rounds=200, seed=3)
    # Two draws from a (count 1, sum 100) and b (count 2, sum 30).
    assert {tuple(row) for row in sums} == {(2.0, 200.0), (3.0, 130.0), (4.0, 60.0)}


def test_resampling_is_reproducible_and_blind_to_row_order(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    users, values = rng.integers(0, 40, 300), rng.normal(size=(300, 2))
    first = metrics.resampled_sums(users, values, rounds=50, seed=7)
    order = rng.permutation(300)
    np.testing.assert_allclose(first, metrics.resampled_sums(users[order], values[order], rounds=50, seed=7))
    assert not np.allclose(first, metrics.resampled_sums(users, values, rounds=50, seed=8))
    monkeypatch.setattr(metrics, "_CELLS", 90)  # in portions of two rounds
    np.testing.assert_allclose(first, metrics.resampled_sums(users, values, rounds=50, seed=7))


def test_intervals_cover_the_true_error_as_often_as_promised():
    """Users differ in how hard they are, so rows depend on each other; intervals must hold all the same."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for trial in range(200):
        users = np.repeat(np.arange(60), 8)
        error = np.abs(1 + np.repeat(rng.normal(0, 0.3, 60), 8) + rng.normal(0, 0.1, 480))
        estimate = metrics.score(np.zeros(480), {"m": error}, users, 0, rounds=300, seed=trial)["m"].mae
        covered += estimate.low <= 1.0 <= estimate.high
        rows = metrics.score(np.zeros(480), {"m": error}, np.arange(480), 0, rounds=300, seed=trial)["m"].mae
        naive += rows.low <= 1.0 <= rows.high
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.7  # drawing rows instead of users promises too much


def test_paired_difference_by_hand_and_tighter_than_unpaired():
    rng = np.random.default_rng(0)
    users, truth = np.arange(100), rng.integers(1, 6, 100).astype(float)
    b = truth + rng.normal(0, 1, 100)
    a = truth + (b - truth) * 0.9  # a tenth better on every single row
    difference = metrics.paired_difference(truth, a, b, users, fallback=4)
    assert difference.mae.value == pytest.approx(metrics.mae(truth, a) - metrics.mae(truth, b))
    assert difference.relative_mae.value == pytest.approx(-0.1)
    assert (difference.relative_mae.low, difference.relative_mae.high) == pytest.approx((-0.1, -0.1))
    assert difference.mae.high < 0 and difference.rmse.high < 0
    scores = metrics.score(truth, {"a": a, "b": b}, users, 4)
    assert difference.mae.high - difference.mae.low < (scores["a"].mae.high - scores["a"].mae.low) / 2


def test_the_same_model_twice_differs_by_nothing():
    truth, prediction = np.array([1.0, 2, 3]), np.array([2.0, NAN, 3])
    difference = metrics.paired_difference(truth, prediction, prediction, np.arange(3), fallback=4)
    assert (difference.mae.value, difference.mae.low, difference.mae.high) == (0, 0, 0)


def test_several_runs_are_pooled():
    truth, users = np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 2])
    runs = np.array([[1.0, 2, 3, np.nan], [2, 4, 3, 4]])
    pooled = metrics.score(truth, {"m": runs}, users, fallback=3)["m"]
    assert pooled.mae.value == 0.5 and pooled.rmse.value == pytest.approx(0.75**0.5)  # errors 0 0 0 1 and 1 2 0 0
    assert pooled.parse_rate == 7 / 8 and pooled.mode_share == 2 / 8
    twice = metrics.score(truth, {"m": np.stack([runs[0], runs[0]])}, users, fallback=3)["m"]
    assert twice == metrics.score(truth, {"m": runs[0]}, users, fallback=3)["m"]


def test_one_user_has_no_interval_and_no_rows_have_no_score():
    score = metrics.score(np.array([1.0, 2]), {"m": np.array([1.0, 3])}, np.array([7, 7]), 4)["m"]
    assert score.mae.value == 0.5 and np.isnan(score.mae.low) and np.isnan(score.rmse.high)
    with pytest.raises(ValueError, match="no rows"):
        metrics.score(np.zeros(0), {"m": np.zeros(0)}, np.zeros(0), 4)
