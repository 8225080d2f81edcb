"""Where a model is good and where it is not: the rows of a comparison, cut in groups."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from . import metrics

COUNTS = ((0, 0), (1, 4), (5, 19), (20, None))  # earlier ratings
PERIODS = 4  # equal shares of the rows, in order of time
FEWEST = 20  # rows of a category that get a line of their own
COLUMNS = ("slice", "group", "model", "rows", "share", "mae", "mae_low", "mae_high", "rmse", "parse_rate")


def groups(examples: pl.DataFrame, categories: pl.DataFrame | None = None) -> Iterator[tuple[str, str, np.ndarray]]:
    """(slice, group, (rows,) bool) of every group that has rows.

    examples: rating, timestamp, user_count, item_count and, where it is known, shown (history entries in the prompt).
    categories: item_id, categories; a row is in each of its item's categories, of which those with few rows are left
    out.
    """
    for value in examples["rating"].unique().sort():
        yield "true rating", f"{value:g}", (examples["rating"] == value).to_numpy()
    counted = {"user's earlier ratings": "user_count", "item's earlier ratings": "item_count", "history shown": "shown"}
    for name, column in counted.items():
        if column not in examples.columns:
            continue
        values = examples[column].to_numpy()
        for low, high in COUNTS:
            inside = (values >= low) & (values <= (np.inf if high is None else high))
            if inside.any():
                yield name, f"{low}+" if high is None else f"{low}" if low == high else f"{low}\u2013{high}", inside
    time = examples["timestamp"].to_numpy()
    cuts = np.quantile(time, np.arange(1, PERIODS) / PERIODS, method="lower") if len(time) else np.zeros(0)
    period = np.searchsorted(np.unique(cuts), time, side="left")  # rows of one moment stay together
    for number in np.unique(period):
        inside = period == number
        first, last = (
            str(pl.Series([t]).cast(pl.Datetime("ms")).dt.date().item())
            for t in (int(time[inside].min()) * 1000, int(time[inside].max()) * 1000)
        )
        yield "time", f"{first} to {last}", inside
    if categories is not None:
        lists = examples.select("item_id").join(categories, on="item_id", how="left", maintain_order="left")[
            "categories"
        ]
        names = lists.explode().drop_nulls().value_counts().filter(pl.col("count") >= FEWEST).sort("categories")
        for name in names["categories"]:
            yield "category", name, lists.list.contains(name).fill_null(False).to_numpy()


def sliced(
    examples: pl.DataFrame,
    answers: Mapping[str, np.ndarray],
    fallback: float,
    categories: pl.DataFrame | None = None,
    rounds: int = metrics.ROUNDS,
    seed: int = metrics.SEED,
) -> pl.DataFrame:
    """Every model's errors in every group, with the columns `COLUMNS`; share: of all rows. As in `metrics.score`."""
    truth = examples["rating"].cast(pl.Float64).to_numpy()
    users = examples["user_id"].rank("dense").to_numpy()
    rows = []
    for kind, group, inside in groups(examples, categories):
        part = {name: np.atleast_2d(given)[:, inside] for name, given in answers.items()}
        for name, s in metrics.score(truth[inside], part, users[inside], fallback, rounds, seed).items():
            share = s.rows / len(truth)
            error = (s.mae.value, s.mae.low, s.mae.high, s.rmse.value)
            rows.append((kind, group, name, s.rows, share, *error, s.parse_rate))
    kinds = [pl.String] * 3 + [pl.Int64] + [pl.Float64] * 6
    return pl.DataFrame(rows, schema=dict(zip(COLUMNS, kinds, strict=True)), orient="row").fill_nan(None)
