"""The settings of baselines: chosen on validation rows, kept for the data set they were chosen on."""

from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from reczero.data import Dataset
from reczero.files import cache_dir, read_json, write_json
from reczero.reasoning.scale import Scale

from . import metrics
from .predictor import Baseline

Settings = dict[str, dict[str, Any]]  # baseline -> settings
SHIPPED = "settings.json"  # beside the baselines: data set -> settings, chosen on its validation rows


def candidates(kind: type[Baseline]) -> Iterator[dict[str, Any]]:
    """The library's defaults, then every combination of the grid."""
    yield {}
    for values in product(*kind.grid.values()):
        yield dict(zip(kind.grid, values, strict=True))


def tune(
    kind: type[Baseline],
    train: pl.DataFrame,
    validation: pl.DataFrame,
    scale: Scale,
    progress: Callable[[dict[str, Any], float, float], None] = lambda settings, mae, rmse: None,
) -> dict[str, Any]:
    """The settings with the lowest RMSE on validation rows, fitted on training rows, if that is clearly lower than the
    defaults' (the 95 % paired interval excludes zero); else the defaults: the lowest of many is low by chance, too.

    RMSE, for that is what these models minimise; what they say for MAE is derived from it. progress: told each trial.
    """
    truth = validation["rating"].cast(pl.Float64).to_numpy()
    trials = []
    for settings in candidates(kind):
        given = kind(**settings).fit(train, scale).predict(validation.drop("rating")).prediction
        trials.append((metrics.rmse(truth, given), settings, given))
        progress(settings, metrics.mae(truth, given), trials[-1][0])
    _, settings, best = min(trials, key=lambda trial: trial[0])
    change = metrics.paired_difference(truth, best, trials[0][2], validation["user_id"].to_numpy(), scale.min).rmse
    return settings if change.high < 0 else {}


def _kept(data: Dataset) -> Path:
    return cache_dir() / "baselines" / f"{data.fingerprint}.json"


def stored(data: Dataset) -> Settings:
    """What was chosen for this very data set on this machine; else what the package has for a data set of that name and
    scale; else nothing, and the libraries' defaults count."""
    if (kept := _kept(data)).is_file():
        return read_json(kept)
    shipped = read_json(Path(str(files("reczero.evaluation.baselines") / SHIPPED)))
    return shipped.get(data.name, {})


def keep(data: Dataset, chosen: Mapping[str, dict[str, Any]]) -> None:
    """Keeps the settings for the next comparison on this data set."""
    write_json(_kept(data), stored(data) | dict(chosen))
