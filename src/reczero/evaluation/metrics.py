"""Errors with intervals that respect users. Arrays only: where the numbers come from is no concern of this file.

A prediction is a float; NaN (or anything not finite) means "no answer". Failures are never dropped: they are scored by
a stated fallback and counted in the parse rate, so that a model which fails looks worse, not better.

Predictions are (rows,), or (runs, rows) where a model was trained several times: then every figure is over the answers
of all runs, and the intervals are those of the method: they draw runs as well as users. Formulas and their sources are
in docs/evaluation.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 10_000
SEED = 0
CONFIDENCE = 0.95
TOLERANCE = 0.5  # rating points within which an answer counts as near: half a star of five
_CELLS = 4_000_000  # user draws held in memory at once: 32 MB whatever the number of rounds
# What is added up over the rows of a user; every figure is a function of these sums.
_SUMS = ("rows", "absolute", "squared", "near", "ordered", "pairs", "users", "user_mae", "user_rmse")


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; the ends are NaN where fewer than two users leave nothing to resample."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """How one model did. `parse_rate` and `mode_share` are fractions of all rows; "no answer" is a value of its own.

    macro_mae, macro_rmse: the mean of the users' own errors, so that each user counts once. near: share of rows whose
    error is at most `TOLERANCE`. pairwise: share of a user's pairs with different ratings that are in the right order
    (ties count half; NaN where no user has such a pair). run_sd: standard deviation of the runs' MAE (NaN for one run).
    """

    rows: int
    mae: Estimate
    rmse: Estimate
    macro_mae: Estimate
    macro_rmse: Estimate
    near: Estimate
    pairwise: Estimate
    parse_rate: float
    mode_share: float
    runs: int
    run_sd: float


@dataclass(frozen=True)
class Difference:
    """Model a minus model b on the same rows: negative means that a errs less. `relative_mae` is mae / MAE of b.

    p_mae, p_rmse: two-sided, of no difference, by the same draws as the intervals; never below 2 / (rounds + 1).
    effect: Cohen's d_z over users: the mean of their differences in MAE by its standard deviation (NaN where it has
    none).
    """

    mae: Estimate
    rmse: Estimate
    relative_mae: Estimate
    p_mae: float
    p_rmse: float
    effect: float


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


def ordered_pairs(truth: np.ndarray, prediction: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each user's pairs of rows with different true ratings: how many the predictions put in the right order (a tie
    counts half), and how many there are. All (rows,), users as whole numbers from 0; returns two (users,).

    In time rows x (log rows + distinct true ratings), not in pairs.
    """
    order = np.lexsort((prediction, users))
    user, given, true = users[order], prediction[order], truth[order]
    edge = np.ones(len(order) + 1, bool)
    edge[1:-1] = user[1:] != user[:-1]
    tied = edge.copy()
    tied[1:-1] |= given[1:] != given[:-1]

    def bounds(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.flatnonzero(edges)
        block = np.cumsum(edges[:-1]) - 1
        return at[block], at[block + 1]

    (first, end), (tie_first, tie_end) = bounds(edge), bounds(tied)
    right, possible = np.zeros(len(order)), np.zeros(len(order))
    for level in np.unique(true)[1:]:
        here = np.flatnonzero(true == level)
        lower = np.concatenate([[0], np.cumsum(true < level)])  # rows of a lower rating before each place
        below = lower[tie_first[here]] - lower[first[here]]
        level_with = lower[tie_end[here]] - lower[tie_first[here]]
        right[here] = below + level_with / 2
        possible[here] = lower[end[here]] - lower[first[here]]
    count = int(users.max()) + 1 if len(users) else 0
    return np.bincount(user, right, count), np.bincount(user, possible, count)


# --- distributions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A reliability curve over the events "the rating is at most g", g each rating of the grid but the highest.

    forecast, observed: (bins,) mean probability and observed share in each bin; count: (bins,) events in it; error: the
    mean of |forecast - observed|, bins weighted by their count.
    """

    forecast: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    error: float


def ranked_probability_score(truth: np.ndarray, distribution: np.ndarray, grid: Sequence[float]) -> np.ndarray:
    """(rows,) the ranked probability score of forecast distributions, in rating points, lower is better.

    sum over the grid's ratings g of (P(rating <= g) - [truth <= g])^2 times the distance to the next (Epstein 1969; the
    weights make a forecast that is certain score its absolute error). distribution: (rows, ratings), rows sum to 1.
    """
    known = (truth[:, None] <= np.asarray(grid)[:-1]).astype(float)
    return ((distribution.cumsum(1)[:, :-1] - known) ** 2 * np.diff(grid)).sum(1)


def calibration(truth: np.ndarray, distribution: np.ndarray, grid: Sequence[float], bins: int = 10) -> Calibration:
    """How often what was forecast with a probability came true. Shapes as in `ranked_probability_score`."""
    forecast = distribution.cumsum(1)[:, :-1].clip(0, 1).ravel()
    happened = (truth[:, None] <= np.asarray(grid)[:-1]).ravel()
    place = np.minimum((forecast * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.flatnonzero(count)
    mean = np.bincount(place, forecast, bins)[filled] / count[filled]
    share = np.bincount(place, happened, bins)[filled] / count[filled]
    error = float(np.average(np.abs(mean - share), weights=count[filled])) if len(filled) else float("nan")
    return Calibration(mean, share, count[filled], error)


# --- resampling -----------------------------------------------------------------------------------------------------


def _draws(count: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """(some rounds, users) how often each user is drawn, portion by portion: as many draws as users, with
    replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)


def resampled_sums(users: np.ndarray, values: np.ndarray, rounds: int = ROUNDS, seed: int = SEED) -> np.ndarray:
    """Cluster bootstrap: draw as many users as there are, with replacement, and add up all rows of those drawn.

    Ratings of one person resemble each other, so users are drawn and not rows (Davison & Hinkley, Bootstrap Methods and
    Their Application, 1997, section 3.8). The draws depend on the number of users and the seed alone, so columns of one
    call, and calls on the same users, are paired.

    users: (rows,) any sortable ids. values: (rows, k). Returns (rounds, k).
    """
    codes = np.unique(users, return_inverse=True)[1]
    sums = np.stack([np.bincount(codes, weights=column) for column in values.T], axis=1)  # (users, k)
    return np.concatenate([times @ sums for times in _draws(len(sums), rounds, seed)])


def _drawn_runs(runs: int, rounds: int, seed: int) -> np.ndarray:
    """(rounds, runs) weights that sum to 1: runs - 1 of the runs, with replacement.

    One less than there are, so that the mean's variance is the unbiased one: with two or three seeds the usual
    bootstrap would show half or two thirds of it (Rao & Wu 1988). The draws depend on the number of runs and the seed
    alone.
    """
    if runs == 1:
        return np.ones((rounds, 1))
    return np.random.default_rng((seed, runs)).multinomial(runs - 1, np.full(runs, 1 / runs), size=rounds) / (runs - 1)


@dataclass(frozen=True)
class _Sums:
    """One model's sums: `users` (users, runs, sums) and `drawn` (rounds, sums), over what each round drew."""

    users: np.ndarray
    drawn: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """(sums,) over all users, the mean of the runs."""
        return self.users.sum(0).mean(0)


def _user_sums(truth: np.ndarray, given: np.ndarray, codes: np.ndarray, near: float) -> np.ndarray:
    """(users, sums) of one run's answers, (rows,)."""
    error = np.abs(given - truth)

    def total(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(codes, values).astype(float)

    rows, absolute, squared = total(None), total(error), total(error**2)
    ordered, pairs = ordered_pairs(truth, given, codes)
    own = absolute / rows, np.sqrt(squared / rows)
    close = total(error <= near + 1e-9)
    return np.stack([rows, absolute, squared, close, ordered, pairs, np.ones(len(rows)), *own], axis=1)


_FIGURES = {  # numerator, denominator, whether the root is taken
    "mae": ("absolute", "rows", False),
    "rmse": ("squared", "rows", True),
    "macro_mae": ("user_mae", "users", False),
    "macro_rmse": ("user_rmse", "users", False),
    "near": ("near", "rows", False),
    "pairwise": ("ordered", "pairs", False),
}


def _figure(name: str, sums: np.ndarray) -> np.ndarray:
    """A figure of sums (..., sums)."""
    above, below, root = _FIGURES[name]
    with np.errstate(divide="ignore", invalid="ignore"):  # no pair anywhere: NaN
        ratio = sums[..., _SUMS.index(above)] / sums[..., _SUMS.index(below)]
    return np.sqrt(ratio) if root else ratio


def _summed(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    users: np.ndarray,
    fallback: float,
    rounds: int,
    seed: int,
    near: float = TOLERANCE,
) -> dict[str, _Sums]:
    if not len(truth):
        raise ValueError("no rows to score")
    codes = np.unique(users, return_inverse=True)[1]
    found = {}
    for name, prediction in predictions.items():
        given = np.atleast_2d(answered(prediction, fallback))
        found[name] = np.stack([_user_sums(truth, run, codes, near) for run in given], axis=1)
    if not found:
        return {}
    flat = np.concatenate([sums.reshape(len(sums), -1) for sums in found.values()], axis=1)
    drawn = np.concatenate(
        [times @ flat for times in _draws(len(flat), rounds, seed)]
    )  # (rounds, models x runs x sums)
    result, at = {}, 0
    for name, sums in found.items():
        runs, width = sums.shape[1], sums.shape[1] * sums.shape[2]
        of_runs = drawn[:, at : at + width].reshape(rounds, runs, -1)
        result[name] = _Sums(sums, np.einsum("br,brs->bs", _drawn_runs(runs, rounds, seed), of_runs))
        at += width
    return result


# --- scores ---------------------------------------------------------------------------------------------------------


def score(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    users: np.ndarray,
    fallback: float,
    rounds: int = ROUNDS,
    seed: int = SEED,
    near: float = TOLERANCE,
) -> dict[str, Score]:
    """Score every model on the same rows and the same draws.

    truth: (rows,). predictions: name -> (rows,) or (runs, rows), NaN where there is no answer. users: (rows,). near:
    the error, in rating points, that counts as near. Intervals are the percentiles of a cluster bootstrap over users
    and, where a model has several, runs (drawn independently: Owen 2007, the pigeonhole bootstrap). Raises ValueError
    when there are no rows.
    """
    scores = {}
    for name, sums in _summed(truth, predictions, users, fallback, rounds, seed, near).items():
        by_run = _figure("mae", sums.users.sum(0))
        whole = sums.whole
        figures = {
            figure: _estimate(float(_figure(figure, whole)), _figure(figure, sums.drawn), len(sums.users))
            for figure in _FIGURES
        }
        scores[name] = Score(
            rows=len(truth),
            **figures,
            parse_rate=parse_rate(predictions[name]),
            mode_share=mode_share(predictions[name]),
            runs=len(by_run),
            run_sd=float(by_run.std(ddof=1)) if len(by_run) > 1 else float("nan"),
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
    return paired_differences(truth, {"a": a, "b": b}, [("a", "b")], users, fallback, rounds, seed)[0]


def paired_differences(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    users: np.ndarray,
    fallback: float,
    rounds: int = ROUNDS,
    seed: int = SEED,
) -> list[Difference]:
    """The difference of each pair of models, all from the same draws. Models with as many runs are paired run by
    run."""
    summed = _summed(truth, predictions, users, fallback, rounds, seed)
    return [_difference(summed[a], summed[b]) for a, b in pairs]


def _difference(a: _Sums, b: _Sums) -> Difference:
    estimates = {}
    drawn = {}
    for figure in ("mae", "rmse"):
        drawn[figure] = _figure(figure, a.drawn) - _figure(figure, b.drawn)
        value = float(_figure(figure, a.whole) - _figure(figure, b.whole))
        estimates[figure] = _estimate(value, drawn[figure], len(a.users))
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing is relative to a model without error: NaN or inf
        relative = np.float64(estimates["mae"].value) / _figure("mae", b.whole)
        relative_drawn = drawn["mae"] / _figure("mae", b.drawn)
        own = _SUMS.index("user_mae")
        of_users = a.users[..., own].mean(1) - b.users[..., own].mean(1)
        effect = of_users.mean() / of_users.std(ddof=1) if len(of_users) > 1 else np.float64("nan")
    return Difference(
        mae=estimates["mae"],
        rmse=estimates["rmse"],
        relative_mae=_estimate(float(relative), relative_drawn, len(a.users)),
        p_mae=_p_value(drawn["mae"], len(a.users)),
        p_rmse=_p_value(drawn["rmse"], len(a.users)),
        effect=float(effect),
    )


def _estimate(value: float, sampled: np.ndarray, users: int) -> Estimate:
    if users < 2 or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):  # between infinities, of a model that makes no error in some draws
        low, high = np.nanquantile(sampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def _p_value(sampled: np.ndarray, users: int) -> float:
    """Twice the smaller share of draws on one side of zero (Davison & Hinkley 1997, section 4.2; zero counts as
    both)."""
    if users < 2:
        return float("nan")
    beyond = min((sampled <= 0).sum(), (sampled >= 0).sum())
    return min(1.0, 2 * (beyond + 1) / (len(sampled) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for how many they are (Holm 1979): the chance that any of those below a level is false stays
    below the level. NaN stays NaN and does not count."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    corrected = np.full(len(p), np.nan)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected.tolist()
