"""Collaborative filtering by Surprise (Hug 2020): it knows who rated what, as of the day it was fitted, and nothing
else.

A user or item that it was not fitted on is answered by what is left of the formula, as Surprise does: biases of the
known side, or the mean rating.
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl
from surprise import SVD, AlgoBase, KNNBaseline, Reader, SVDpp
from surprise import Dataset as Loaded

from reczero.evaluation.predictor import Baseline, CannotRun, Forecast

SEED = 0
MOST_NEIGHBOURS = 30_000  # users or items between which all similarities fit into memory: 7 GB


class _Collaborative(Baseline):
    columns = ("user_id", "item_id")

    def _algorithm(self, **settings: Any) -> AlgoBase:
        raise NotImplementedError

    def _learn(self, rows: pl.DataFrame) -> None:
        reader = Reader(rating_scale=(self.scale.min, self.scale.max))
        self.constant = float(rows["rating"][0]) if rows["rating"].n_unique() == 1 else None  # no similarity then
        if self.constant is not None:
            return
        columns = [rows[name].to_list() for name in (*self.columns, "rating")]
        loaded = Loaded(reader)
        loaded.raw_ratings = [(*row, None) for row in zip(*columns, strict=True)]
        self.model = self._algorithm(**self.settings).fit(loaded.construct_trainset(loaded.raw_ratings))

    def predict(self, examples: pl.DataFrame) -> Forecast:
        if self.constant is not None:
            return Forecast(np.full(examples.height, self.constant))
        asked = examples.select(self.columns).iter_rows()
        return Forecast(np.array([self.model.predict(user, item).est for user, item in asked], float))


class BiasedMF(_Collaborative):
    """Matrix factorisation with biases, by stochastic gradient descent (Koren, Bell & Volinsky 2009)."""

    name = "biased-mf"
    grid = {"n_factors": (20, 100), "n_epochs": (20, 40), "reg_all": (0.02, 0.05, 0.1)}

    def _algorithm(self, **settings: Any) -> AlgoBase:
        return SVD(random_state=SEED, **settings)


class SVDPlusPlus(_Collaborative):
    """Biased matrix factorisation in which what was rated at all says something of a user too (Koren 2008)."""

    name = "svd++"
    grid = {"n_epochs": (10, 20), "reg_all": (0.02, 0.05, 0.1)}

    def _algorithm(self, **settings: Any) -> AlgoBase:
        return SVDpp(random_state=SEED, **settings)


class _Neighbours(_Collaborative):
    """The baseline of biases, corrected by the k most similar neighbours' deviations from theirs (Koren 2010)."""

    between: ClassVar[str]  # the column whose values are compared
    grid = {"k": (20, 40, 80), "similarity": ("msd", "pearson_baseline")}

    def _learn(self, rows: pl.DataFrame) -> None:
        if (count := rows[self.between].n_unique()) > MOST_NEIGHBOURS:
            raise CannotRun(
                f"baseline {self.name}: similarities between {count:,} of {self.between} do not fit into memory "
                f"(at most {MOST_NEIGHBOURS:,}); leave it out"
            )
        super()._learn(rows)

    def _algorithm(self, similarity: str = "pearson_baseline", **settings: Any) -> AlgoBase:
        options = {"name": similarity, "user_based": self.between == "user_id"}
        return KNNBaseline(sim_options=options, verbose=False, **settings)


class ItemKNN(_Neighbours):
    """Neighbours are items that the same users rate alike."""

    name = "item-knn"
    between = "item_id"


class UserKNN(_Neighbours):
    """Neighbours are users who rate the same items alike."""

    name = "user-knn"
    between = "user_id"
