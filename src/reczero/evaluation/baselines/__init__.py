"""Opponents behind one contract. Those from libraries are loaded when they are asked for."""

from importlib import import_module

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.evaluation.predictor import Baseline, CannotRun, Forecast
from reczero.reasoning.scale import Scale

from .averages import Additive, AverageRegression, GlobalMean, GlobalMedian, ItemAverage, UserAverage

AVERAGES: tuple[type[Baseline], ...] = (GlobalMean, GlobalMedian, UserAverage, ItemAverage, Additive)
FALLBACK = GlobalMedian.name  # a row without an answer is scored as if this baseline had answered it
ROUNDED, MEDIAN, REFITTED = "-rounded", "-median", "-refitted"
_LEARNED = {  # name -> module, class
    "biased-mf": ("collaborative", "BiasedMF"),
    "svd++": ("collaborative", "SVDPlusPlus"),
    "item-knn": ("collaborative", "ItemKNN"),
    "user-knn": ("collaborative", "UserKNN"),
    "boosting": ("boosting", "Boosting"),
    "boosting-classes": ("boosting", "BoostingClasses"),
    "affinity": ("facts", "Affinity"),
    "affinity-hint": ("facts", "AffinityHint"),
    "affinity-classes": ("facts", "AffinityClasses"),
    "affinity-hint-classes": ("facts", "AffinityHintClasses"),
    "narre": ("reviews", "NARRE"),
}
NAMES = (*(baseline.name for baseline in AVERAGES), AverageRegression.name, *_LEARNED)


def baseline(name: str) -> type[Baseline]:
    """The baseline of that name. Raises UserError for an unknown one, or where its library is missing."""
    plain: tuple[type[Baseline], ...] = (*AVERAGES, AverageRegression)
    for kind in plain:
        if kind.name == name:
            return kind
    if name not in _LEARNED:
        raise UserError(f"no baseline {name!r}; there are {', '.join(NAMES)}")
    module, kind_name = _LEARNED[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), kind_name)
    except ModuleNotFoundError as error:
        extra = "reviews" if module == "reviews" else "baselines"
        raise CannotRun(f"baseline {name} needs {error.name}: pip install 'reczero[{extra}]'") from error


def is_average(name: str) -> bool:
    """Whether a baseline needs no library: constants, averages, and what combines them."""
    return name in NAMES and name not in _LEARNED


def is_baseline(name: str) -> bool:
    """Whether a model of this name is one of ours to compare against, in whatever form."""
    for ending in (ROUNDED, MEDIAN, REFITTED):
        if name not in NAMES:  # "global-median" ends on no form
            name = name.removesuffix(ending)
    return name in NAMES


def rounded(prediction: np.ndarray, scale: Scale) -> np.ndarray:
    """The nearest rating on the scale's grid, halves upwards: what a mean-minded predictor says when MAE counts.

    NaN stays NaN.
    """
    grid = np.asarray(scale.grid())
    place = np.floor((np.nan_to_num(prediction, nan=scale.min) - scale.min) / scale.step + 0.5)
    return np.where(np.isnan(prediction), np.nan, grid[np.clip(place, 0, len(grid) - 1).astype(int)])


def median_of(distribution: np.ndarray, scale: Scale) -> np.ndarray:
    """(rows,) the lowest rating of the grid that is reached with a probability of at least one half: what minimises the
    expected absolute error. NaN where there is no distribution."""
    grid = np.asarray(scale.grid())
    reached = (distribution.cumsum(1) >= 0.5 - 1e-9).argmax(1)
    return np.where(np.isnan(distribution).any(1), np.nan, grid[reached])


def forms(name: str, forecast: Forecast, scale: Scale) -> dict[str, np.ndarray]:
    """The forecast as it is, and L1-optimal where that differs: `name-median` of a distribution, else
    `name-rounded`."""
    given = {name: forecast.prediction}
    if forecast.distribution is not None:
        best, ending = median_of(forecast.distribution, scale), MEDIAN
    else:
        best, ending = rounded(forecast.prediction, scale), ROUNDED
    if not np.allclose(best, forecast.prediction, equal_nan=True):
        given[name + ending] = best
    return given


def predict_all(train: pl.DataFrame, examples: pl.DataFrame, scale: Scale) -> dict[str, np.ndarray]:
    """name -> (rows,) of the constants and averages, each as it is and rounded where that differs anywhere."""
    hidden = examples.drop("rating", strict=False)
    predictions: dict[str, np.ndarray] = {}
    for kind in AVERAGES:
        predictions |= forms(kind.name, kind().fit(train, scale).predict(hidden), scale)
    return predictions


__all__ = [
    "AVERAGES", "FALLBACK", "MEDIAN", "NAMES", "REFITTED", "ROUNDED", "Additive", "AverageRegression", "GlobalMean",
    "GlobalMedian", "ItemAverage", "UserAverage", "baseline", "forms", "is_average", "is_baseline", "median_of",
    "predict_all", "rounded",
]  # fmt: skip
