"""From interactions and items to a prepared folder: sort, split, and the context as of the moment before each row.

Nothing here is quadratic and nothing grows with the length of texts: contexts are computed on four slim columns, and
histories hold references (`row` in interactions.parquet), written in slices. Texts are joined when a prompt is made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reczero import __version__
from reczero.errors import UserError
from reczero.files import atomic_dir, cache_dir, sha256, write_json
from reczero.reasoning import Scale

from .dataset import FILES, FORMAT, INTERACTIONS, ITEMS, SPLITS, Dataset
from .sources import find_source

SLICE = 100_000  # examples held in memory at a time while writing, and rows in a Parquet row group


class PrepareSettings(BaseModel):
    """How to make examples; the same names in a recipe's `data` section and on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["time"] = Field(
        default="time", description="how to split: 'time' cuts all rows, in time order, in three"
    )
    train: float = Field(default=0.8, gt=0, le=1, description="share of the rows, the oldest, to train on")
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="share of the rows after those, to choose a checkpoint on"
    )
    test: float = Field(default=0.1, ge=0, lt=1, description="share of the rows, the newest, to report on")
    k_core: int = Field(default=0, ge=0, description="targets only of users and items with this many ratings; 0 is off")
    history: int = Field(
        default=10, ge=1, description="how many of the newest earlier ratings a context shows, on each side"
    )
    min_user_history: int = Field(
        default=1, ge=0, description="fewer earlier ratings by the user make a row a cold start"
    )
    min_item_history: int = Field(
        default=1, ge=0, description="fewer earlier ratings of the item make a row a cold start"
    )
    min_context: int = Field(
        default=5, ge=0, description="fewer shown ratings, both sides together, make a row a cold start"
    )

    @model_validator(mode="after")
    def _possible(self) -> "PrepareSettings":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must sum to 1, not {total:g}")
        if self.min_context > 2 * self.history:
            raise ValueError(f"min_context {self.min_context} is more than two histories of {self.history} can show")
        return self


def prepare_source(
    name: str, out: Path, settings: PrepareSettings | None = None, archive: str | None = None
) -> Dataset:
    """Fetch the source called `name` unless it is cached, and prepare it in folder `out`.

    A folder that already holds exactly this (same files read, same settings, same version of reczero) is used as it is.
    """
    settings = settings or PrepareSettings()
    source = find_source(name)
    raw = source.read(source.fetch(cache_dir(), archive))
    made = _provenance(name, source.home, source.licence, raw.scale, settings, raw.inputs)
    if (out / "dataset.json").is_file():
        try:
            there = Dataset.open(out)
            if made.items() <= there.info.items() and there.is_intact():
                return there
        except UserError:
            pass  # damaged or of an older format: made anew below
    return prepare(
        raw.interactions, raw.items, raw.scale, out, settings,
        name=name, source=source.home, licence=source.licence, inputs=raw.inputs,
    )  # fmt: skip


def prepare(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    scale: Scale,
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    name: str = "table",
    source: str = "",
    licence: str = "",
    inputs: dict[str, str] | None = None,
) -> Dataset:
    """Write interactions.parquet, items.parquet, examples.parquet and dataset.json to `out`, all or nothing.

    Takes tables as in `sources.Raw`; columns beyond those are dropped. The same rows in another order give the same
    bytes. Of repeated ratings of an item by a user the earliest is kept. `k_core` chooses which rows become examples,
    and the fractions cut those in order of (timestamp, user, item); contexts rest on all rows, whatever their split.
    Raises UserError for missing columns, bad values, no rows left, or an `out` that holds something else.
    """
    settings = settings or PrepareSettings()
    _check_replaceable(out)
    ratings, users, things = _ordered(_checked(interactions, scale))
    catalogue, bare = _catalogue(items, ratings)
    targets = _k_core(users, things, settings.k_core)
    cuts = [round(len(targets) * share) for share in (settings.train, settings.train + settings.validation)]
    splits = np.repeat(np.array(SPLITS), np.diff([0, *cuts, len(targets)]))

    columns = _targets(ratings, users, things, targets, splits, settings)
    counts: dict[str, int] = {
        "users": ratings["user_id"].n_unique(),
        "items": ratings["item_id"].n_unique(),
        "interactions": ratings.height,
        "repeats_dropped": interactions.height - ratings.height,
        "texts": ratings.select((pl.col("review").is_not_null() | pl.col("summary").is_not_null()).sum()).item(),
        "items_without_title": bare,
        "examples": len(targets),
    }
    for split in SPLITS:
        inside = splits == split
        counts[split] = int(inside.sum())
        counts[f"{split}_cold_start"] = int((columns.cold_start & inside).sum())

    with atomic_dir(out, ours="dataset.json") as folder:
        _write(folder / "interactions.parquet", ratings)
        _write(folder / "items.parquet", catalogue)
        _write_examples(folder / "examples.parquet", ratings, columns, settings.history)
        info = _provenance(name, source, licence, scale, settings, inputs or {})
        info |= {"counts": counts, "files": {file: sha256(folder / file) for file in FILES}}
        write_json(folder / "dataset.json", info)
    return Dataset.open(out)


def _provenance(
    name: str, source: str, licence: str, scale: Scale, settings: PrepareSettings, inputs: dict[str, str]
) -> dict[str, object]:
    """The part of dataset.json that is known before the work. No clock in it: the same input gives the same bytes."""
    return {
        "format": FORMAT, "name": name, "source": source, "licence": licence, "scale": scale.to_dict(),
        "settings": settings.model_dump(), "inputs": inputs, "created_by": f"reczero {__version__}",
    }  # fmt: skip


def _check_replaceable(out: Path) -> None:
    """Only a folder that we made, and nothing else in it, may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out.")
    names = {path.name for path in out.iterdir()}
    foreign = sorted(names - {*FILES, "dataset.json"})
    if foreign or (names and "dataset.json" not in names):
        raise UserError(f"{out}: holds other files ({', '.join(sorted(foreign or names)[:3])}); choose another --out.")


# --- tables ---------------------------------------------------------------------------------------------------------


def _cast(frame: pl.DataFrame, schema: dict[str, pl.DataType], required: tuple[str, ...], what: str) -> pl.DataFrame:
    """The columns of `schema`, typed; optional ones that are missing come as nulls."""
    missing = [column for column in required if column not in frame.columns]
    if missing:
        raise UserError(f"{what}: no column {', '.join(missing)}; there are {', '.join(frame.columns) or 'none'}.")
    try:
        return frame.select(
            (pl.col(column) if column in frame.columns else pl.lit(None)).cast(kind).alias(column)
            for column, kind in schema.items()
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{what}: a column has the wrong type: {str(error).splitlines()[0]}.") from error


def _blank_to_null(*columns: str) -> pl.Expr:
    return pl.when(pl.col(*columns).str.strip_chars() != "").then(pl.col(*columns))


def _checked(interactions: pl.DataFrame, scale: Scale) -> pl.DataFrame:
    """Typed interactions, every one with user, item, a rating on the scale, and a time; UserError otherwise."""
    if "timestamp" in interactions.columns and interactions.schema["timestamp"].is_temporal():
        raise UserError("interactions: timestamp holds dates; give whole Unix seconds.")
    frame = _cast(interactions, INTERACTIONS, ("user_id", "item_id", "rating", "timestamp"), "interactions")
    if frame.is_empty():
        raise UserError("interactions: the table has no rows.")
    faults = {
        "without user_id": pl.col("user_id").is_null() | (pl.col("user_id") == ""),
        "without item_id": pl.col("item_id").is_null() | (pl.col("item_id") == ""),
        f"with a rating off the scale {scale.min:g}-{scale.max:g}": ~pl.col("rating")
        .is_between(scale.min, scale.max)
        .fill_null(False),
        "without a time": pl.col("timestamp").is_null(),
    }
    for fault, rows in frame.select(**{name: rows.sum() for name, rows in faults.items()}).row(0, named=True).items():
        if rows:
            first = frame.select(faults[fault].arg_max()).item()
            raise UserError(f"interactions: {rows:,} rows {fault}; the first is row {first}. Mend or remove them.")
    return frame.with_columns(_blank_to_null("review", "summary"))


def _rank(ids: pl.Series) -> pl.DataFrame:
    """A table of the distinct ids and their rank (int32): numbers by value, before all other ids, by their bytes.

    The order of two ids never depends on which other ids there are: an id that turns up later must not reorder ties in
    what was shown before.
    """
    column = pl.col(ids.name)
    number = column.str.contains(r"^[0-9]+$")
    digits = column.str.strip_chars_start("0")
    return (
        ids.unique()
        .to_frame()
        .sort(
            ~number,
            pl.when(number).then(digits.str.len_bytes()),
            pl.when(number).then(digits),
            column,
        )
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("rank"))
    )


def _rank_of(ids: pl.Series) -> pl.Series:
    return ids.to_frame().join(_rank(ids), on=ids.name, how="left", maintain_order="left")["rank"]


def _ordered(frame: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Rows by (time, user, item) without repeats, and each row's user and item as whole numbers.

    Repeats of one second and rating are told apart by a hash of their texts, so that input order never matters.
    """
    slim = frame.select(
        "timestamp",
        "rating",
        user=_rank_of(frame["user_id"]),
        item=_rank_of(frame["item_id"]),
        text=pl.struct("review", "summary").hash(),
        at=pl.int_range(pl.len(), dtype=pl.UInt32),
    )
    slim = slim.sort("timestamp", "user", "item", "rating", "text")
    slim = slim.unique(["user", "item"], keep="first", maintain_order=True)
    return frame[slim["at"]], slim["user"].to_numpy(), slim["item"].to_numpy()


def _catalogue(items: pl.DataFrame, ratings: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One row an item, by id, and how many had no title: those are called by their id."""
    frame = _cast(items, ITEMS, ("item_id", "title"), "items").filter(pl.col("item_id").is_not_null())
    texts = ("title", "creator", "price", "description")
    frame = frame.with_columns(
        _blank_to_null(*texts),
        pl.col("categories").list.drop_nulls().fill_null([]),
    )
    # Of two rows for one item, the same one whatever the order they came in.
    frame = frame.sort("item_id", *texts, pl.col("categories").list.join("\0"), nulls_last=True).unique(
        "item_id", keep="first", maintain_order=True
    )
    rated = ratings.select(pl.col("item_id").unique())
    frame = frame.join(rated, on="item_id", how="full", coalesce=True)
    bare = frame.select((pl.col("title").is_null() & pl.col("item_id").is_in(rated["item_id"].implode())).sum()).item()
    frame = frame.with_columns(pl.col("title").fill_null(pl.col("item_id")), pl.col("categories").fill_null([]))
    return frame.join(_rank(frame["item_id"]), on="item_id").sort("rank").select(*ITEMS), bare


def _k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Rows (ascending) left when users and items with fewer than `k` of them are removed again and again."""
    rows = np.arange(len(users))
    while k > 1:
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (np.bincount(items[rows])[items[rows]] >= k)
        if enough.all():
            break
        rows = rows[enough]
        if not len(rows):
            raise UserError(
                f"k_core {k} leaves no rows: no users and items are that densely rated; choose a lower one."
            )
    return rows


# --- the context as of the moment before ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Past:
    """What one side (all users, or all items) knew before each row: row `r`'s past is
    `order[start[r] : start[r] + count[r]]`, oldest first, and `average[r]` is the mean of its ratings (NaN if none)."""

    order: np.ndarray
    start: np.ndarray
    count: np.ndarray
    average: np.ndarray


def _past(keys: np.ndarray, timestamps: np.ndarray, ratings: np.ndarray) -> _Past:
    """The strictly earlier rows of the same key. Rows come in time order; rows of one time see none of each other."""
    order = np.argsort(keys, kind="stable")
    key, time = keys[order], timestamps[order]
    place = np.arange(len(order))
    new_key = np.concatenate([[True], key[1:] != key[:-1]])
    new_time = new_key | np.concatenate([[True], time[1:] != time[:-1]])
    start = np.maximum.accumulate(np.where(new_key, place, 0))
    end = np.maximum.accumulate(np.where(new_time, place, 0))  # the first row of this time: all before it is earlier
    # Summed within the key: a running sum over all rows would let other keys into the last bits.
    running = pl.DataFrame({"key": key, "rating": ratings[order]}).select(pl.col("rating").cum_sum().over("key"))
    sums = running.to_series().to_numpy()
    count = end - start
    average = np.full(len(order), np.nan)
    known = count > 0
    average[known] = sums[end[known] - 1] / count[known]

    by_row = np.empty_like(order)
    by_row[order] = place
    return _Past(order, start[by_row], count[by_row], average[by_row])


@dataclass(frozen=True)
class _Columns:
    """The examples without their histories: row numbers in interactions, and what is known of each."""

    rows: np.ndarray
    splits: np.ndarray
    cold_start: np.ndarray
    user: _Past
    item: _Past


def _targets(
    ratings: pl.DataFrame,
    users: np.ndarray,
    items: np.ndarray,
    rows: np.ndarray,
    splits: np.ndarray,
    settings: PrepareSettings,
) -> _Columns:
    time, rating = ratings["timestamp"].to_numpy(), ratings["rating"].to_numpy()
    user, item = _past(users, time, rating), _past(items, time, rating)
    by_user, by_item = user.count[rows], item.count[rows]
    shown = np.minimum(by_user, settings.history) + np.minimum(by_item, settings.history)
    cold = (
        (by_user < settings.min_user_history) | (by_item < settings.min_item_history) | (shown < settings.min_context)
    )
    return _Columns(rows, splits, cold, user, item)


def _write_examples(path: Path, ratings: pl.DataFrame, columns: _Columns, history: int) -> None:
    column = {name: ratings[name].to_arrow() for name in ("user_id", "item_id", "rating", "timestamp")}
    # The user's part is escaped so that the first colon ends it: two pairs of ids never make the same example_id.
    example_id = ratings.select(
        pl.col("user_id").str.replace_all("%", "%25", literal=True).str.replace_all(":", "%3A", literal=True)
        + ":"
        + pl.col("item_id")
    ).to_series().to_arrow()  # fmt: skip

    def references(past: _Past, rows: np.ndarray, other: str) -> pa.Array:
        shown = np.minimum(past.count[rows], history)
        ends = np.cumsum(shown)
        # Runs of `shown` consecutive places, each ending where the row's past ends.
        first = past.start[rows] + past.count[rows] - shown
        places = np.arange(ends[-1]) + np.repeat(first - (ends - shown), shown)
        past_rows = past.order[places]
        fields = {"row": pa.array(past_rows, pa.int64())}
        fields |= {name: column[name].take(pa.array(past_rows)) for name in (other, "rating", "timestamp")}
        entries = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], ends])), entries)

    def average(past: _Past, rows: np.ndarray) -> pa.Array:
        return pa.array(past.average[rows], mask=past.count[rows] == 0)

    writer: pq.ParquetWriter | None = None
    try:
        for begin in range(0, len(columns.rows), SLICE):
            part = slice(begin, begin + SLICE)
            rows = columns.rows[part]
            at = pa.array(rows)
            table = pa.table(
                {
                    "example_id": example_id.take(at),
                    **{name: values.take(at) for name, values in column.items()},
                    "split": pa.array(columns.splits[part]),
                    "user_history": references(columns.user, rows, "item_id"),
                    "item_history": references(columns.item, rows, "user_id"),
                    "cold_start": pa.array(columns.cold_start[part]),
                    "user_avg": average(columns.user, rows),
                    "item_avg": average(columns.item, rows),
                    "user_count": pa.array(columns.user.count[rows], pa.int64()),
                    "item_count": pa.array(columns.item.count[rows], pa.int64()),
                }
            )
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=SLICE)
    finally:
        if writer is not None:
            writer.close()


def _write(path: Path, frame: pl.DataFrame) -> None:
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(table, path, compression="zstd", row_group_size=SLICE)
