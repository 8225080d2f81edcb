"""Errors with intervals that respect users. Arrays only: where the numbers come from is no concern of this file.

A prediction is a float; NaN (or anything not finite) means "no answer". Failures are never dropped: they are scored by
a stated fallback and counted in the parse rate, so that a model which fails looks worse, not better.

Predictions are (rows,), or (runs, rows) where a model was trained several times: then every figure is over the answers
of all runs, and the intervals, over users, are those of the mean of just these runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ROUNDS = 2_000
SEED = 0
CONFIDENCE = 0.95
_CELLS = 4_000_000  # user draws held in memory at once: 32 MB whatever the number of rounds


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; the ends are NaN where fewer than two users leave nothing to resample."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """How one model did. `parse_rate` and `mode_share` are fractions of all rows; "no answer" is a value of its own."""

    rows: int
    mae: Estimate
    rmse: Estimate
    parse_rate: float
    mode_share: float


@dataclass(frozen=True)
class Difference:
    """Model a minus model b on the same rows: negative means that a errs less. `relative_mae` is mae / MAE of b."""

    mae: Estimate
    rmse: Estimate
    relative_mae: Estimate


def answered(prediction: np.ndarray, fallback: float) -> np.ndarray:
    """Predictions with every failure replaced by the fallback."""
    return np.where(np.isfinite(prediction), prediction, fallback)


def mae(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean absolute error, `mean(|prediction - truth|)`, in rating points. NaN is not handled: see `answered`."""
    return float(np.abs(prediction - truth).mean())


def rmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Root mean squared error, `sqrt(mean((prediction - truth)^2))`, in rating points."""
    return float(np.sqrt(np.square(prediction - truth).mean()))


def parse_rate(prediction: np.ndarray) -> float:
    """Share of the rows with an answer."""
    return float(np.isfinite(prediction).mean())


def mode_share(prediction: np.ndarray) -> float:
    """Share of all rows that bear the most frequent prediction: 1.0 is a model that always says the same."""
    values = np.where(np.isfinite(prediction), np.round(prediction, 6), np.nan)
    return float(np.unique(values, return_counts=True)[1].max() / values.size)


def resampled_sums(users: np.ndarray, values: np.ndarray, rounds: int = ROUNDS, seed: int = SEED) -> np.ndarray:
    """Cluster bootstrap: draw as many users as there are, with replacement, and add up all rows of those drawn.

    Ratings of one person resemble each other, so users are drawn and not rows (Davison & Hinkley, Bootstrap Methods and
    Their Application, 1997, section 3.8). The draws depend on the number of users and the seed alone, so columns of one
    call, and calls on the same users, are paired.

    users: (rows,) any sortable ids. values: (rows, k). Returns (rounds, k).
    """
    codes = np.unique(users, return_inverse=True)[1]
    count = int(codes.max()) + 1
    sums = np.stack([np.bincount(codes, weights=column, minlength=count) for column in values.T], axis=1)  # (users, k)
    rng = np.random.default_rng(seed)
    result = np.empty((rounds, values.shape[1]))
    step = max(1, _CELLS // count)
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)  # how often each user is drawn
        result[start : start + size] = times.astype(float) @ sums
    return result


def score(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    users: np.ndarray,
    fallback: float,
    rounds: int = ROUNDS,
    seed: int = SEED,
) -> dict[str, Score]:
    """Score every model on the same rows and the same draws.

    truth: (rows,). predictions: name -> (rows,) or (runs, rows), NaN where there is no answer. users: (rows,).
    Intervals are the percentiles of a cluster bootstrap. Raises ValueError when there are no rows.
    """
    sampled = _sampled(truth, predictions, users, fallback, rounds, seed)
    scores = {}
    for name, prediction in predictions.items():
        given = answered(prediction, fallback)
        scores[name] = Score(
            rows=len(truth),
            mae=_estimate(mae(truth, given), sampled[name][0], users),
            rmse=_estimate(rmse(truth, given), sampled[name][1], users),
            parse_rate=parse_rate(prediction),
            mode_share=mode_share(prediction),
        )
    return scores


def paired_difference(
    truth: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    users: np.ndarray,
    fallback: float,
    rounds: int = ROUNDS,
    seed: int = SEED,
) -> Difference:
    """Errors of model `a` minus those of model `b`, with intervals over the same draws. Shapes as in `score`."""
    sampled = _sampled(truth, {"a": a, "b": b}, users, fallback, rounds, seed)
    (mae_a, rmse_a), (mae_b, rmse_b) = sampled["a"], sampled["b"]
    given_a, given_b = answered(a, fallback), answered(b, fallback)
    true_a, true_b = mae(truth, given_a), mae(truth, given_b)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing is relative to a model without error: NaN or inf
        relative = np.float64(true_a - true_b) / true_b, (mae_a - mae_b) / mae_b
    return Difference(
        mae=_estimate(true_a - true_b, mae_a - mae_b, users),
        rmse=_estimate(rmse(truth, given_a) - rmse(truth, given_b), rmse_a - rmse_b, users),
        relative_mae=_estimate(float(relative[0]), relative[1], users),
    )


def _sampled(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    users: np.ndarray,
    fallback: float,
    rounds: int,
    seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (MAE, RMSE) of every bootstrap round, each (rounds,)."""
    if not len(truth):
        raise ValueError("no rows to score")
    columns = [np.ones(len(truth))]
    for prediction in predictions.values():
        error = np.atleast_2d(np.abs(answered(prediction, fallback) - truth))
        columns += [error.mean(0), (error**2).mean(0)]
    sums = resampled_sums(users, np.stack(columns, axis=1), rounds, seed)
    means = sums[:, 1:] / sums[:, :1]
    return {name: (means[:, 2 * i], np.sqrt(means[:, 2 * i + 1])) for i, name in enumerate(predictions)}


def _estimate(value: float, sampled: np.ndarray, users: np.ndarray) -> Estimate:
    if np.all(users == users[0]):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(sampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
