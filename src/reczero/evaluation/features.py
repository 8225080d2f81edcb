"""Numbers about an example that were known strictly before it: what a learner of tables may know of a user and an item.

All as of the moment, as the contexts of `reczero.data` are: the same rule of what is earlier, and of what the contexts
of a split may hold. A number that does not exist (an average of nothing) is NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import polars as pl

from reczero.data import Dataset, Split
from reczero.data.context import Past, Ratings, past_of
from reczero.data.settings import PrepareSettings
from reczero.data.splits import NONE, SPLITS, visible
from reczero.reasoning import Fact, Standing

from .predictor import FACT, FEATURE

RECENT = 10  # newest entries that "recent" speaks of
_YEAR = r"\((\d{4})\)\s*$"  # as films and books bear it at the end of their titles


def with_features(data: Dataset, examples: pl.DataFrame) -> pl.DataFrame:
    """`examples` with the as-of numbers as further columns, whose names begin with `FEATURE`.

    user_, item_: avg, count (log of 1 + n), spread (standard deviation), recent (mean of the newest `RECENT`), residual
    (mean of rating - the other side's average at that time, over the entries where there was one), age (days since the
    first rating). taste: mean residual of the user's entries with the target's categories (mean over them), taste_count
    (log of 1 + mean n); creator, creator_count: the same of its creator. year: at the end of the title. category_share:
    taste's mean n by the user's entries.
    """
    table = _features(data)
    return examples.join(table, on="example_id", how="left", maintain_order="left")


def with_facts(data: Dataset, examples: pl.DataFrame, split: Split, facts: Sequence[Fact]) -> pl.DataFrame:
    """`examples`, all of one split, with their standing as further columns, whose names begin with `FACT`: item_mean,
    affinity, spread, and the hint if it is among `facts`; null where one does not exist."""
    standings = data.standings.of(examples.with_columns(split=pl.lit(split)), facts)
    columns = {FACT + one.name: [getattr(s, one.name) for s in standings] for one in fields(Standing)}
    return examples.with_columns(**{name: pl.Series(x, dtype=pl.Float64) for name, x in columns.items()})


def _features(data: Dataset) -> pl.DataFrame:
    """One row for every example of the data set."""
    interactions = data.interactions(("user_id", "item_id", "rating", "timestamp")).with_row_index("row")
    rows = data.examples(cold_start=None, columns=["example_id", "user_id", "item_id", "split"])
    places = rows.join(interactions, on=["user_id", "item_id"], how="left", maintain_order="left")["row"].to_numpy()
    split = np.full(interactions.height, NONE, np.int8)
    split[places] = rows["split"].replace_strict({name: i for i, name in enumerate(SPLITS)}).to_numpy()

    users, items = (interactions[key].rank("dense").to_numpy().astype(np.int64) - 1 for key in ("user_id", "item_id"))
    ratings = Ratings(
        interactions["user_id"], interactions["item_id"], users, items,
        interactions["rating"].to_numpy(), interactions["timestamp"].to_numpy(),
    )  # fmt: skip
    about = interactions.select("item_id").join(
        data.items(("item_id", "title", "categories", "creator")), on="item_id", how="left", maintain_order="left"
    )
    settings = PrepareSettings(**data.info["settings"])
    numbers: dict[str, np.ndarray] = {}
    done: dict[bytes, dict[str, np.ndarray]] = {}  # splits whose contexts may hold the same rows are made together
    for to in range(len(SPLITS)):
        shown = visible(split, to, settings)
        key = np.packbits(shown).tobytes()
        if key not in done:
            done[key] = _numbers(ratings, shown, about)
        for name, values in done[key].items():
            numbers.setdefault(name, np.full(len(ratings), np.nan, np.float32))[split == to] = values[split == to]
    columns = {FEATURE + name: values[places] for name, values in numbers.items()}
    return rows.select("example_id").with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def _numbers(ratings: Ratings, shown: np.ndarray, about: pl.DataFrame) -> dict[str, np.ndarray]:
    """name -> (rows,) of every interaction, from the `shown` rows strictly before it."""
    every = np.arange(len(ratings))
    by_user, by_item = past_of(ratings.users, ratings, shown, every), past_of(ratings.items, ratings, shown, every)
    # A rating, less what the other side's average led one to expect; NaN where there was none yet.
    residual = {"user": ratings.rating - by_item.average, "item": ratings.rating - by_user.average}
    numbers: dict[str, np.ndarray] = {}
    for side, past in (("user", by_user), ("item", by_item)):
        first = ratings.timestamp[past.order[np.minimum(past.start, len(past.order) - 1)]] if len(past.order) else 0
        numbers |= {
            f"{side}_avg": past.average,
            f"{side}_count": np.log1p(past.count),
            f"{side}_spread": _spread(past, ratings.rating),
            f"{side}_recent": _mean(past, ratings.rating, newest=RECENT),
            f"{side}_residual": _mean(past, residual[side]),
            f"{side}_age": np.where(past.count > 0, (ratings.timestamp - first) / 86_400, np.nan),
        }
    groups = {
        "taste": about["categories"].list.unique(maintain_order=True),
        "creator": about.select(pl.when(pl.col("creator").is_not_null()).then(pl.concat_list("creator")))["creator"],
    }
    for name, labels in groups.items():
        if labels.list.len().sum():
            numbers |= _affinity(name, labels, ratings, residual["user"], shown)
    if "taste_count" in numbers:
        with np.errstate(divide="ignore", invalid="ignore"):
            numbers["category_share"] = numbers["taste_count"] / by_user.count
        numbers["taste_count"] = np.log1p(numbers["taste_count"])
    year = about["title"].str.extract(_YEAR).cast(pl.Float64, strict=False)
    if year.count():
        numbers["year"] = year.fill_null(float("nan")).to_numpy()
    return numbers


def _affinity(
    name: str, labels: pl.Series, ratings: Ratings, residual: np.ndarray, shown: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Of each row's labels, averaged over them: the user's mean residual with a label, and how many such entries.

    labels: (rows,) lists of strings, null or empty where there are none.
    """
    count = labels.list.len().fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(ratings)), count)
    codes = labels.drop_nulls().explode(empty_as_null=False).rank("dense").to_numpy().astype(np.int64)
    keys = ratings.users[rows] * (int(codes.max()) + 1) + codes
    stretched = Ratings(
        ratings.user_ids, ratings.item_ids, ratings.users[rows], ratings.items[rows], residual[rows],
        ratings.timestamp[rows],
    )  # fmt: skip
    past = past_of(keys, stretched, shown[rows] & ~np.isnan(residual[rows]), np.arange(len(rows)))
    known = past.count > 0
    having = np.bincount(rows[known], minlength=len(ratings))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(rows[known], past.average[known], len(ratings)) / having  # NaN where no label has a past
        met = np.bincount(rows, past.count, len(ratings)) / count
    return {name: mean, f"{name}_count": met}


def _sum(past: Past, values: np.ndarray, newest: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of those `values` in each past, or in its newest entries, that are not NaN, and how many those are."""
    inside = values[past.order]
    known = ~np.isnan(inside)
    running, number = (np.concatenate([[0], np.cumsum(x)]) for x in (np.where(known, inside, 0.0), known))
    end = past.start + past.count
    start = end - (past.count if newest is None else np.minimum(past.count, newest))
    return running[end] - running[start], number[end] - number[start]


def _mean(past: Past, values: np.ndarray, newest: int | None = None) -> np.ndarray:
    total, count = _sum(past, values, newest)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / count


def _spread(past: Past, values: np.ndarray) -> np.ndarray:
    mean = _mean(past, values)
    return np.sqrt(np.maximum(_mean(past, values**2) - mean**2, 0))
