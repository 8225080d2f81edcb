"""The context as of the moment before each row: computed on whole-number columns, written in slices.

Nothing here is quadratic and nothing grows with the length of texts: histories hold references (`row` in
interactions.parquet), and texts are joined when a prompt is made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from .settings import PrepareSettings
from .splits import NONE, SPLITS, visible
from .staging import write_tables

SLICE = 100_000  # examples held in memory at a time while writing, and rows in a Parquet row group


@dataclass(frozen=True)
class Ratings:
    """All kept rows by (time, user, item), without their texts. Users and items are places in their sorted ids."""

    user_ids: pl.Series
    item_ids: pl.Series
    users: np.ndarray  # (rows,) int32
    items: np.ndarray  # (rows,) int32
    rating: np.ndarray  # (rows,) float64
    timestamp: np.ndarray  # (rows,) int64

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Past:
    """What one side (all users, or all items) knew before each target: the past of target `t` is
    `order[start[t] : start[t] + count[t]]`, oldest first, and `average[t]` is the mean of its ratings (NaN if none)."""

    order: np.ndarray
    start: np.ndarray
    count: np.ndarray
    average: np.ndarray


def past_of(keys: np.ndarray, ratings: Ratings, shown: np.ndarray, targets: np.ndarray) -> Past:
    """The strictly earlier rows of the same key among those that are `shown`, for each target row.

    keys: (rows,) int; shown: (rows,) bool; targets: row numbers. Rows come in order of time; rows of one time see none
    of each other.
    """
    order = np.argsort(keys, kind="stable").astype(np.int32 if len(keys) < 2**31 else np.int64)
    key, time = keys[order], ratings.timestamp[order]
    place = np.arange(len(order), dtype=np.int64)
    new_key = np.concatenate([[True], key[1:] != key[:-1]])
    new_time = new_key | np.concatenate([[True], time[1:] != time[:-1]])
    key_begins = np.maximum.accumulate(np.where(new_key, place, 0))
    time_begins = np.maximum.accumulate(np.where(new_time, place, 0))  # all of the key before it is earlier
    at = np.empty_like(order)
    at[order] = place
    at = at[targets]

    kept = shown[order]
    order = order[kept]
    before = np.concatenate([[0], np.cumsum(kept)])  # shown rows before each place
    start, end = before[key_begins[at]], before[time_begins[at]]
    # Summed within the key: a running sum over all rows would let other keys into the last bits.
    running = pl.DataFrame({"key": key[kept], "rating": ratings.rating[order]})
    sums = running.select(pl.col("rating").cum_sum().over("key")).to_series().to_numpy()
    count = end - start
    average = np.full(len(targets), np.nan)
    known = count > 0
    average[known] = sums[end[known] - 1] / count[known]
    return Past(order, start, count, average)


@dataclass(frozen=True)
class Targets:
    """The examples of one or more splits without their histories: their rows, and what each knew."""

    rows: np.ndarray
    split: np.ndarray
    user: Past
    item: Past

    def cold_start(self, settings: PrepareSettings) -> np.ndarray:
        by_user, by_item = self.user.count, self.item.count
        seen = np.minimum(by_user, settings.history) + np.minimum(by_item, settings.history)
        few = (by_user < settings.min_user_history) | (by_item < settings.min_item_history)
        return few | (seen < settings.min_context)


def contexts(ratings: Ratings, split: np.ndarray, settings: PrepareSettings) -> Targets:
    """What every example knew. split: (rows,) as `split_rows` gives it."""
    rows = np.flatnonzero(split != NONE)
    groups: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for to in range(len(SPLITS)):
        shown = visible(split, to, settings)
        groups.setdefault(np.packbits(shown).tobytes(), (shown, []))[1].append(to)

    sides = []
    for keys in (ratings.users, ratings.items):
        orders, begins = [], 0
        start, count = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        average = np.empty(len(rows))
        for shown, members in groups.values():
            inside = np.isin(split[rows], members)
            past = past_of(keys, ratings, shown, rows[inside])
            start[inside], count[inside], average[inside] = past.start + begins, past.count, past.average
            orders.append(past.order)
            begins += len(past.order)
        sides.append(Past(np.concatenate(orders), start, count, average))
    return Targets(rows, split[rows], *sides)


def write_examples(
    path: Path, ratings: Ratings, targets: Targets, settings: PrepareSettings, report: Callable[[int, int], None]
) -> None:
    """examples.parquet, in order of time. report: told how many are written, of how many."""
    user_ids, item_ids = ratings.user_ids.to_arrow(), ratings.item_ids.to_arrow()
    # The user's part is escaped so that the first colon ends it: two pairs of ids never make the same example_id.
    escaped = ratings.user_ids.str.replace_all("%", "%25", literal=True).str.replace_all(":", "%3A", literal=True)
    cold_start = targets.cold_start(settings)
    names = pa.array(SPLITS)

    def references(past: Past, part: slice, other: str, ids: pa.Array, codes: np.ndarray) -> pa.Array:
        shown = np.minimum(past.count[part], settings.history)
        ends = np.cumsum(shown)
        # Runs of `shown` consecutive places, each ending where the row's past ends.
        first = past.start[part] + past.count[part] - shown
        places = np.arange(ends[-1]) + np.repeat(first - (ends - shown), shown)
        rows = past.order[places]
        fields = {
            "row": pa.array(rows.astype(np.int64)),
            other: ids.take(pa.array(codes[rows])),
            "rating": pa.array(ratings.rating[rows]),
            "timestamp": pa.array(ratings.timestamp[rows]),
        }
        entries = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], ends])), entries)

    def average(past: Past, part: slice) -> pa.Array:
        return pa.array(past.average[part], mask=past.count[part] == 0)

    def tables() -> Iterator[pa.Table]:
        for begin in range(0, len(targets.rows), SLICE):
            part = slice(begin, begin + SLICE)
            rows = targets.rows[part]
            user, item = ratings.users[rows], ratings.items[rows]
            example_id = escaped.gather(user) + ":" + ratings.item_ids.gather(item)
            yield pa.table(
                {
                    "example_id": example_id.to_arrow(),
                    "user_id": user_ids.take(pa.array(user)),
                    "item_id": item_ids.take(pa.array(item)),
                    "rating": pa.array(ratings.rating[rows]),
                    "timestamp": pa.array(ratings.timestamp[rows]),
                    "split": names.take(pa.array(targets.split[part])),
                    "user_history": references(targets.user, part, "item_id", item_ids, ratings.items),
                    "item_history": references(targets.item, part, "user_id", user_ids, ratings.users),
                    "cold_start": pa.array(cold_start[part]),
                    "user_avg": average(targets.user, part),
                    "item_avg": average(targets.item, part),
                    "user_count": pa.array(targets.user.count[part]),
                    "item_count": pa.array(targets.item.count[part]),
                }
            )

    write_tables(path, tables(), SLICE, lambda written: report(written, len(targets.rows)))
