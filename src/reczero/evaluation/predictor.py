"""What everything that is compared promises, whatever it is made of: a language model, an average, a library's
model."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.files import atomic_dir, read_json
from reczero.reasoning import Fact, Scale


class CannotRun(UserError):
    """A predictor that these data, or this machine, do not allow."""


class Forecast(NamedTuple):
    """Answers to rows, in their order.

    prediction: (rows,) floats, NaN where there is no answer. distribution: (rows, ratings of the scale's grid), rows
    sum to 1 (NaN where there is none), or None of a predictor that has no such thing.
    """

    prediction: np.ndarray
    distribution: np.ndarray | None = None


class Predictor(ABC):
    """Predicts ratings of rows whose truth it does not see."""

    name: ClassVar[str]

    @abstractmethod
    def predict(self, examples: pl.DataFrame) -> Forecast:
        """Answers to examples (columns as in `reczero.data.EXAMPLES`, without `rating`), none left out: users and items
        without a past and rows without a history included. The same rows always get the same answers."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all that `load` needs. Nothing is pickled."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The predictor that was saved, which answers as it did. Raises UserError."""


class Baseline(Predictor):
    """A predictor that is fitted on rated examples.

    It sees ids, times, as-of columns (`user_avg`, `item_avg`, `user_count`, `item_count`: everything strictly earlier
    than the row), where `features` is true the as-of numbers of `reczero.evaluation.features`, and its `facts`.
    """

    columns: ClassVar[tuple[str, ...]] = ()  # what it learns from, besides the rating
    features: ClassVar[bool] = False
    facts: ClassVar[tuple[Fact, ...]] = ()  # of `reczero.data.standing`, in columns whose names begin with `FACT`
    combines: ClassVar[bool] = (
        False  # combines averages that every row has: fitted on validation rows, the nearest in time
    )
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {}  # settings to choose among on validation rows
    scale: Scale

    def __init__(self, **settings: Any) -> None:
        """settings: those of `grid`, and what else the model takes; the library's defaults where nothing is said."""
        self.settings = settings

    def fit(self, train: pl.DataFrame, scale: Scale) -> Self:
        """Learn from rated examples and return self."""
        self.scale = scale
        own = [*self.columns, *(name for name in train.columns if self.features and name.startswith(FEATURE))]
        self._rows = train.select(*own, pl.col("rating").cast(pl.Float64))
        self._learn(self._rows)
        return self

    @abstractmethod
    def _learn(self, rows: pl.DataFrame) -> None:
        """Learn from `columns`, the features, and `rating`."""

    def save(self, folder: Path) -> None:
        """Keeps the rows and the settings: fitting is deterministic, so `load` fits again. That is slower than reading
        weights and needs no format of any library's."""
        with atomic_dir(folder) as into:
            self._rows.write_parquet(into / "rows.parquet")
            about = {"name": self.name, "settings": self.settings, "scale": self.scale.to_dict()}
            (into / "baseline.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        about = read_json(folder / "baseline.json")
        if about.get("name") != cls.name:
            raise UserError(f"{folder}: holds {about.get('name')!r}, not {cls.name!r}.")
        try:
            rows = pl.read_parquet(folder / "rows.parquet")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{folder / 'rows.parquet'}: not a readable Parquet file; save the model again.") from error
        return cls(**about["settings"]).fit(rows, Scale(**about["scale"]))


FEATURE, FACT = "x_", "fact_"  # what the names of as-of features and of facts begin with
