"""A small prepared data set of random ratings, with many ties in time."""

import numpy as np
import polars as pl

from reczero.data import Dataset, PrepareSettings, prepare
from reczero.reasoning.scale import Scale

SCALE = Scale(1, 5, 1)


def made(folder, seed: int = 0, rows: int = 300, **settings) -> Dataset:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(12 * 40)[:rows]
    interactions = pl.DataFrame(
        {
            "user_id": [f"u{p // 40}" for p in pairs],
            "item_id": [f"i{p % 40}" for p in pairs],
            "rating": rng.integers(1, 6, rows).astype(float),
            "timestamp": rng.integers(0, 90, rows) * 86_400,  # many ties
        }
    )
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(40)],
            "title": [f"Film {i} ({1950 + i})" if i % 7 else f"Film {i}" for i in range(40)],
            "categories": [[c for k, c in enumerate("abcd") if (i >> k) & 1] for i in range(40)],
            "creator": [f"c{i % 5}" if i % 3 else None for i in range(40)],
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    return prepare(interactions, items, SCALE, folder / "data", PrepareSettings(**settings))
