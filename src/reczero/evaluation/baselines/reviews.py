"""A review-aware opponent of the paper's list, by Cornac (Salah, Truong & Lauw 2020) on TensorFlow.

Both are large, so they are an extra of their own (`reczero[reviews]`), and the row is left out where they are missing.
"""

import contextlib
import io
import os
import warnings
from typing import Any

import numpy as np
import polars as pl

from reczero.evaluation.predictor import Baseline, CannotRun, Forecast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # the same numbers every time
import tensorflow  # noqa: F401  (Cornac imports it only when it trains: its absence must be told before)
from cornac.data import Dataset, ReviewModality
from cornac.data.text import BaseTokenizer
from cornac.models import NARRE as CornacNARRE

SEED = 0


class NARRE(Baseline):
    """Neural attentional regression over the reviews that a user and an item have (Chen et al. 2018), as of the day it
    was fitted. Needs training rows with reviews."""

    name = "narre"
    columns = ("user_id", "item_id", "review")

    def _learn(self, rows: pl.DataFrame) -> None:
        rated = rows.select("user_id", "item_id", pl.col("rating")).rows()
        texts = rows.filter(pl.col("review").str.strip_chars() != "").select("user_id", "item_id", "review").rows()
        if not texts:
            raise CannotRun("baseline narre: the data set has no reviews; leave it out")
        reviews = ReviewModality(
            data=texts, tokenizer=BaseTokenizer(stop_words="english"), max_vocab=4000, max_doc_freq=0.5
        )  # fmt: skip
        self.train = Dataset.build(rated, seed=SEED)
        reviews.build(uid_map=self.train.uid_map, iid_map=self.train.iid_map, dok_matrix=self.train.dok_matrix)
        self.train.add_modalities(review_text=reviews)
        settings: dict[str, Any] = {"seed": SEED, "verbose": False} | self.settings
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras draws bars, and remarks on Cornac's masks
            self.model = CornacNARRE(**settings).fit(self.train)

    def predict(self, examples: pl.DataFrame) -> Forecast:
        users, items = self.train.uid_map, self.train.iid_map
        given = [
            np.squeeze(self.model.rate(users[user], items[item]))
            if user in users and item in items
            else self.train.global_mean
            for user, item in examples.select("user_id", "item_id").iter_rows()
        ]
        return Forecast(np.clip(np.array(given, float), self.scale.min, self.scale.max))
