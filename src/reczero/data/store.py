"""Rows into Parquet: their order, without repeats, and the two tables of a prepared folder.

Texts never stay in memory: they are staged on disk while the rows are read, and written in order at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from reczero.errors import UserError

from .context import Ratings
from .sources import Raw
from .staging import ROWS, Staging, ahead, write_tables
from .tables import INTERACTIONS, ITEMS, Checker, check_items

TEXTS, THINGS = "texts", "items"  # what is staged, by its file's name

# --- interactions ----------------------------------------------------------------------------------------------------


def stage_interactions(raw: Raw, folder: Path) -> tuple[pl.DataFrame, Staging]:
    """The rows without their texts, in the order of reading: ids, rating, timestamp, and `text`, a hash of review and
    summary (null where there are none); and the texts, staged in `folder`."""
    texts = Staging(folder / TEXTS, {name: INTERACTIONS[name] for name in ("review", "summary")})
    check = Checker(raw.scale, raw.reviews, raw.clock, raw.timed, raw.unescape)
    kinds = {name: INTERACTIONS[name] for name in ("user_id", "item_id", "rating", "timestamp")}
    slim = [pl.DataFrame(schema=kinds | {"text": pl.UInt64()})]
    for good in ahead(map(check, raw.interactions)):
        texts.add(good)
        some = pl.any_horizontal(pl.col("review", "summary").is_not_null())
        slim.append(
            good.select(
                "user_id",
                "item_id",
                "rating",
                "timestamp",
                text=pl.when(some).then(pl.struct("review", "summary").hash()),
            )
        )
    texts.close()
    return pl.concat(slim), texts


def _ranked(ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct ids in order, and each row's place among them (int32): numbers by value, before all other ids, which
    come by their bytes.

    The order of two ids never depends on which other ids there are: an id that turns up later must not reorder ties in
    what was shown before.
    """
    distinct = ids.unique().to_frame().sort(*_id_order(pl.col(ids.name)))
    codes = ids.to_frame().join(
        distinct.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code")),
        on=ids.name,
        how="left",
        maintain_order="left",
    )
    return distinct.to_series(), codes["code"].to_numpy()


def _id_order(column: pl.Expr) -> list[pl.Expr]:
    number = column.str.contains(r"^[0-9]+$")
    digits = column.str.strip_chars_start("0")
    return [~number, pl.when(number).then(digits.str.len_bytes()), pl.when(number).then(digits), column]


def in_order(rows: pl.DataFrame, timed: bool, seed: int) -> tuple[Ratings, np.ndarray]:
    """Rows by (time, user, item) without repeats, and which of the rows read each of them is.

    Repeats of one second and rating are told apart by a hash of their texts, so that input order never matters. Rows
    without times are shuffled, and their places stand for the time.
    """
    user_ids, users = _ranked(rows["user_id"])
    item_ids, items = _ranked(rows["item_id"])
    slim = rows.select(
        "timestamp", "rating", "text", user=pl.Series(users), item=pl.Series(items), at=pl.int_range(pl.len())
    )
    slim = slim.sort("timestamp", "user", "item", "rating", "text")
    slim = slim.unique(["user", "item"], keep="first", maintain_order=True)
    if not timed:
        slim = slim[np.random.default_rng(seed).permutation(slim.height)]
        slim = slim.with_columns(timestamp=pl.int_range(pl.len()))
    columns = (slim[name].to_numpy() for name in ("user", "item", "rating", "timestamp"))
    return Ratings(user_ids, item_ids, *columns), slim["at"].to_numpy()


def write_interactions(
    path: Path, ratings: Ratings, kept: np.ndarray, read: int, texts: Staging | None, report: Callable[[int, int], None]
) -> None:
    """interactions.parquet. `kept`: which of the `read` rows each is; `texts` is None where there are none at all."""
    position = np.full(read, -1, np.int64)
    position[kept] = np.arange(len(kept))
    user_ids, item_ids = ratings.user_ids.to_arrow(), ratings.item_ids.to_arrow()
    nothing = pl.DataFrame(schema={name: INTERACTIONS[name] for name in ("review", "summary")})
    empty = nothing.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    size = texts.rows_at_once if texts else ROWS
    nulls: Iterable[pa.Table] = (
        pa.table([pa.nulls(min(size, len(kept) - begin), kind) for kind in empty.types], schema=empty)
        for begin in range(0, len(kept), size)
    )

    def tables() -> Iterator[pa.Table]:
        begin = 0
        for part in nulls if texts is None else texts.ordered(position, size):
            inside = slice(begin, begin + part.num_rows)
            begin += part.num_rows
            yield pa.table(
                {
                    "user_id": user_ids.take(pa.array(ratings.users[inside])),
                    "item_id": item_ids.take(pa.array(ratings.items[inside])),
                    "rating": pa.array(ratings.rating[inside]),
                    "timestamp": pa.array(ratings.timestamp[inside]),
                    "review": part["review"],
                    "summary": part["summary"],
                }
            )

    write_tables(path, tables(), size, lambda written: report(written, len(kept)))


# --- items -----------------------------------------------------------------------------------------------------------


def stage_items(raw: Raw, folder: Path) -> tuple[pl.DataFrame, Staging]:
    """item_id, title and a hash of all else, of every row of the item table as they were read; and the rows, staged in
    `folder`."""
    staged = Staging(folder / THINGS, ITEMS)
    slim = [pl.DataFrame(schema={"item_id": pl.String, "title": pl.String, "rest": pl.UInt64})]
    for batch in raw.items:
        good = check_items(batch, raw.item_file, raw.unescape)
        staged.add(good)
        rest = pl.struct(pl.col("categories").list.join("\0"), "creator", "price", "description").hash()
        slim.append(good.select("item_id", "title", rest=rest))
    staged.close()
    return pl.concat(slim), staged


def check_agreement(listed: pl.DataFrame) -> None:
    """UserError where two rows of one item differ: in a table of ratings that is no attribute of the item."""
    differ = (
        listed.group_by("item_id").agg(pl.struct("title", "rest").n_unique().alias("kinds")).filter(pl.col("kinds") > 1)
    )
    if not differ.is_empty():
        one = differ["item_id"].min()
        raise UserError(
            f"items: {differ.height:,} items are described in more than one way, {one!r} among them. In a table of "
            "ratings such a column belongs to the rating, and would show what came later; give a table of items."
        )


def write_items(path: Path, listed: pl.DataFrame, staged: Staging, rated: pl.Series) -> int:
    """items.parquet: one row an item, by id, the unrated ones too. Returns how many rated ones had no title: those are
    called by their id."""
    # Of two rows for one item, the same one whatever the order they came in; one with a title if there is any.
    best = (
        listed.with_row_index("at")
        .sort("item_id", "title", "rest", nulls_last=True)
        .unique("item_id", keep="first", maintain_order=True)
    )
    unlisted = rated.filter(~rated.is_in(best["item_id"].implode()))
    bare = len(unlisted) + best.filter(pl.col("title").is_null(), pl.col("item_id").is_in(rated.implode())).height
    columns = pl.concat([best.select("item_id", "at"), unlisted.alias("item_id").to_frame()], how="diagonal")
    columns = columns.sort(*_id_order(pl.col("item_id")))

    position = np.full(listed.height, -1, np.int64)
    known = columns["at"].is_not_null()
    position[columns["at"].drop_nulls().to_numpy()] = np.arange(int(known.sum()))
    schema = pl.DataFrame(schema=ITEMS).to_arrow(compat_level=pl.CompatLevel.oldest()).schema

    size = staged.rows_at_once

    def tables() -> Iterator[pa.Table]:
        # The listed ones come in their order; between them stand those of which nothing is known.
        coming = staged.ordered(position, size) if known.any() else iter(())
        waiting = pl.DataFrame(schema=ITEMS)
        for begin in range(0, columns.height, size):
            part = columns[begin : begin + size]
            here = int(part["at"].is_not_null().sum())
            while waiting.height < here:
                waiting = pl.concat([waiting, pl.DataFrame(pl.from_arrow(next(coming))).cast(pl.Schema(ITEMS))])
            rows = part.select("item_id").join(waiting[:here], on="item_id", how="left", maintain_order="left")
            waiting = waiting[here:]
            rows = rows.with_columns(pl.col("title").fill_null(pl.col("item_id")), pl.col("categories").fill_null([]))
            yield rows.select(*ITEMS).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)

    write_tables(path, tables(), size, lambda _: None)
    return bare
