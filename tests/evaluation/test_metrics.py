"""Metrics by hand, intervals by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    once = metrics.score(truth, {"m": runs[0]}, users, fallback=3)["m"]
    assert (twice.mae, twice.rmse, twice.pairwise) == (once.mae, once.rmse, once.pairwise)
    assert (twice.runs, twice.run_sd) == (2, 0.0) and once.runs == 1 and np.isnan(once.run_sd)


def test_the_mean_of_the_users_own_errors_by_hand():
    truth, prediction, users = np.array([1.0, 2, 5]), np.array([3.0, 2, 4]), np.array([0, 0, 1])
    score = metrics.score(truth, {"m": prediction}, users, fallback=3)["m"]  # errors 2, 0 and 1
    assert score.macro_mae.value == 1.0  # (1 + 1) / 2
    assert score.macro_rmse.value == pytest.approx((np.sqrt(2) + 1) / 2)
    assert score.near.value == pytest.approx(1 / 3)


def test_pairs_in_the_right_order_by_hand():
    users = np.array([0, 0, 0, 1, 1, 2])
    truth = np.array([1.0, 3, 5, 2, 2, 4])
    given = np.array(
        [2.0, 2, 1, 9, 1, 1]
    )  # user 0: (1,3) tied, (1,5) and (3,5) wrong; user 1 has no pair; nor has user 2
    ordered, pairs = metrics.ordered_pairs(truth, given, users)
    assert ordered.tolist() == [0.5, 0, 0] and pairs.tolist() == [3, 0, 0]
    assert metrics.score(truth, {"m": given}, users, 3)["m"].pairwise.value == pytest.approx(0.5 / 3)
    alone = metrics.score(truth[3:], {"m": given[3:]}, users[3:], 3)["m"].pairwise
    assert np.isnan(alone.value) and np.isnan(alone.low)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([1.0, 2.5, 3.0, 4.0])), min_size=1, max_size=25
    )
)
def test_pairs_are_counted_as_one_by_one(rows: list[tuple[int, int, float]]):
    users, truth, guess = (np.array(column) for column in zip(*rows, strict=True))
    ordered, pairs = np.zeros(users.max() + 1), np.zeros(users.max() + 1)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if users[i] == users[j] and truth[i] < truth[j]:
                pairs[users[i]] += 1
                ordered[users[i]] += 1.0 if guess[i] < guess[j] else 0.5 if guess[i] == guess[j] else 0.0
    found = metrics.ordered_pairs(truth.astype(float), guess, users)
    np.testing.assert_array_equal(found[0], ordered)
    np.testing.assert_array_equal(found[1], pairs)


def test_ranked_probability_score_by_hand():
    grid, truth = (1.0, 2.0, 3.0), np.array([1.0, 3.0, 2.0])
    distribution = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    # (0.5 - 1)^2 + (0.8 - 1)^2; right on; certain of 1 where it was 2: the absolute error.
    assert metrics.ranked_probability_score(truth, distribution, grid) == pytest.approx([0.29, 0.0, 1.0])
    halves = metrics.ranked_probability_score(np.array([1.0]), np.array([[0.0, 0.0, 1.0]]), (1.0, 1.5, 2.0))
    assert halves == pytest.approx([1.0])  # in rating points, whatever the grid


def test_calibration_by_hand_and_of_a_forecaster_who_is_right():
    grid, truth = (1.0, 2.0), np.array([1.0, 1.0, 2.0, 2.0])
    curve = metrics.calibration(truth, np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]), grid, bins=10)
    assert curve.forecast == pytest.approx([0.2, 0.9]) and curve.observed == pytest.approx([0.0, 2 / 3])
    assert curve.count.tolist() == [1, 3]
    assert curve.error == pytest.approx(0.25 * 0.2 + 0.75 * (0.9 - 2 / 3))
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(5), 20_000)
    drawn = 1 + (honest.cumsum(1) < rng.random((20_000, 1))).sum(1)
    assert metrics.calibration(drawn.astype(float), honest, (1.0, 2, 3, 4, 5)).error < 0.01


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = metrics.holm([0.01, NAN])
    assert corrected[0] == 0.01 and np.isnan(corrected[1])
    assert metrics.holm([]) == []


def test_p_values_are_small_as_often_as_they_say_when_nothing_differs():
    rng = np.random.default_rng(1)
    small = 0
    for trial in range(300):
        users = np.repeat(np.arange(50), 6)
        taste = np.repeat(rng.normal(0, 0.5, 50), 6)
        a, b = (taste * sign + rng.normal(0, 1, 300) for sign in (1, -1))  # as far off, for the same users
        small += metrics.paired_difference(np.zeros(300), a, b, users, 0, rounds=400, seed=trial).p_mae < 0.05
    assert 0.02 <= small / 300 <= 0.09


def test_p_value_and_effect_of_a_clear_difference():
    rng = np.random.default_rng(0)
    users, truth = np.repeat(np.arange(60), 5), rng.integers(1, 6, 300).astype(float)
    good, bad = truth + rng.normal(0, 0.5, 300), truth + rng.normal(0, 1.0, 300)
    difference = metrics.paired_difference(truth, good, bad, users, 4, rounds=1000)
    assert difference.p_mae == pytest.approx(2 / 1001) and difference.p_rmse == pytest.approx(2 / 1001)
    own = [
        metrics.mae(truth[users == u], good[users == u]) - metrics.mae(truth[users == u], bad[users == u])
        for u in range(60)
    ]
    assert difference.effect == pytest.approx(np.mean(own) / np.std(own, ddof=1))
    same = metrics.paired_difference(truth, good, good, users, 4, rounds=100)
    assert same.p_mae == 1.0 and np.isnan(same.effect)


def test_intervals_of_several_runs_cover_the_error_of_the_method():
    """Runs differ too: an interval that takes these three for all would promise too much."""
    rng = np.random.default_rng(3)
    covered = blind = 0
    for trial in range(200):
        users = np.repeat(np.arange(80), 4)
        run = rng.normal(0, 0.15, (3, 1))
        error = np.abs(1 + run + np.repeat(rng.normal(0, 0.2, 80), 4) + rng.normal(0, 0.1, (3, 320)))
        pooled = metrics.score(np.zeros(320), {"m": error}, users, 0, rounds=400, seed=trial)["m"]
        covered += pooled.mae.low <= 1.0 <= pooled.mae.high
        mean = metrics.score(np.zeros(320), {"m": error.mean(0)}, users, 0, rounds=400, seed=trial)["m"].mae
        blind += mean.low <= 1.0 <= mean.high
        assert pooled.run_sd == pytest.approx(error.mean(1).std(ddof=1))
    assert 0.75 <= covered / 200 <= 1.0  # of three runs no percentile can promise 95 %
    assert blind / 200 < 0.6


def test_one_user_has_no_interval_and_no_rows_have_no_score():
    score = metrics.score(np.array([1.0, 2]), {"m": np.array([1.0, 3])}, np.array([7, 7]), 4)["m"]
    assert score.mae.value == 0.5 and np.isnan(score.mae.low) and np.isnan(score.rmse.high)
    with pytest.raises(ValueError, match="no rows"):
        metrics.score(np.zeros(0), {"m": np.zeros(0)}, np.zeros(0), 4)
