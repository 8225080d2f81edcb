"""A prepared folder, opened: examples as tables, contexts with their texts joined, and what can be said of it all."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from reczero.errors import UserError
from reczero.files import read_json, sha256
from reczero.reasoning import Context, HistoryEntry, Item, Opinion, Scale

FORMAT = 1
FILES = ("interactions.parquet", "items.parquet", "examples.parquet")
SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]

INTERACTIONS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
    "review": pl.String(),
    "summary": pl.String(),
}
ITEMS: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
    "creator": pl.String(),
    "price": pl.String(),
    "description": pl.String(),
}


def _references(other: str) -> pl.DataType:
    kinds = {"row": pl.Int64(), other: pl.String(), "rating": pl.Float64(), "timestamp": pl.Int64()}
    return pl.List(pl.Struct(kinds))


EXAMPLES: dict[str, pl.DataType] = {
    "example_id": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
    "split": pl.String(),
    "user_history": _references("item_id"),
    "item_history": _references("user_id"),
    "cold_start": pl.Boolean(),
    "user_avg": pl.Float64(),
    "item_avg": pl.Float64(),
    "user_count": pl.Int64(),
    "item_count": pl.Int64(),
}


class Dataset:
    """A folder that `prepare` made. `info` is its dataset.json, `scale` the rating scale, `name` the source's name."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self.name: str = info["name"]
        self.scale = Scale(**info["scale"])

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Raises UserError when `path` is not a prepared folder, is of another format, or lacks or damaged a file."""
        path = Path(path)
        how = "make one with `reczero data prepare NAME --out DIR`"
        if not (path / "dataset.json").is_file():
            state = "holds no dataset.json" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: not a prepared data set ({state}); {how}.")
        info = read_json(path / "dataset.json")
        if not isinstance(info, dict) or "format" not in info:
            raise UserError(f"{path / 'dataset.json'}: not ours; {how}.")
        if info["format"] != FORMAT:
            raise UserError(
                f"{path}: prepared in format {info['format']}, this version reads format {FORMAT}; prepare it again."
            )
        for name, schema in zip(FILES, (INTERACTIONS, ITEMS, EXAMPLES), strict=True):
            try:
                found = pl.read_parquet_schema(path / name)
            except (OSError, pl.exceptions.PolarsError) as error:
                reason = "is missing" if not (path / name).exists() else f"cannot be read ({_first_line(error)})"
                raise UserError(f"{path / name}: {reason}; prepare the data set again.") from error
            if dict(found) != schema:
                raise UserError(f"{path / name}: other columns than expected; prepare the data set again.")
        try:
            return cls(path, info)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / 'dataset.json'}: {error} is missing or wrong; prepare it again.") from error

    def is_intact(self) -> bool:
        """Whether the files are still those that dataset.json speaks of (reads them whole)."""
        return self.info.get("files") == {name: sha256(self.path / name) for name in FILES}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files' own SHA-256; UserError when a file was changed after preparation."""
        if not self.is_intact():
            raise UserError(f"{self.path}: files were changed after they were prepared; prepare the data set again.")
        return hashlib.sha256("".join(self.info["files"][name] for name in FILES).encode()).hexdigest()

    def _scan(self, name: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.path / f"{name}.parquet", glob=False)

    def examples(self, split: Split | None = None, cold_start: bool | None = False) -> pl.DataFrame:
        """Examples (columns as in `EXAMPLES`) in order of time, of one split or of all.

        `cold_start`: False leaves out rows with too little context, True gives only those, None gives both.
        """
        frame = self._scan("examples")
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"split {split!r} is none of {SPLITS}")
            frame = frame.filter(pl.col("split") == split)
        if cold_start is not None:
            frame = frame.filter(pl.col("cold_start") == cold_start)
        return self._collect(frame)

    def example(self, example_id: str) -> pl.DataFrame:
        """The one example of that id, as a table of one row."""
        found = self._collect(self._scan("examples").filter(pl.col("example_id") == example_id))
        if found.is_empty():
            one = self._collect(self._scan("examples").select("example_id").head(1)).item()
            raise UserError(f"{self.path}: no example {example_id!r}; ids are USER:ITEM, such as {one!r}.")
        return found

    def contexts(self, examples: pl.DataFrame) -> list[Context]:
        """The context of each row of `examples`, in their order: the only place where texts join the references.

        The target's own rating and texts are not looked at. Entries that several contexts share are made once.
        """
        sides = {"user_history": "item_id", "item_history": "user_id"}
        entries = {
            side: examples.select(pl.col(side).explode(empty_as_null=False)).unnest(side).unique("row")
            for side in sides
        }
        texts = self._texts(pl.concat([entries[side]["row"] for side in sides]).unique())
        items = self._items(pl.concat([examples["item_id"], entries["user_history"]["item_id"]]).unique())

        def rows(side: str) -> list[list[int]]:
            return examples[side].list.eval(pl.element().struct.field("row")).to_list()

        rated = {
            row: HistoryEntry(items[item], rating, *texts.get(row, (None, None)))
            for row, item, rating in entries["user_history"].select("row", "item_id", "rating").iter_rows()
        }
        opinions = {
            row: Opinion(rating, *texts.get(row, (None, None)))
            for row, rating in entries["item_history"].select("row", "rating").iter_rows()
        }
        plain = examples.select("item_id", "user_avg", "user_count", "item_avg", "item_count").iter_rows()
        return [
            Context(items[item], tuple(rated[r] for r in by_user), tuple(opinions[r] for r in by_item), *standing)
            for (item, *standing), by_user, by_item in zip(
                plain, rows("user_history"), rows("item_history"), strict=True
            )
        ]

    def _texts(self, rows: pl.Series) -> dict[int, tuple[str | None, str | None]]:
        """(summary, review) of those interactions that have either."""
        if not self.info["counts"]["texts"]:
            return {}
        found = self._scan("interactions").select("summary", "review").with_row_index("row")
        wanted = rows.cast(pl.UInt32).to_frame("row").lazy()
        frame = self._collect(found.join(wanted, on="row", how="semi"))
        return {row: (summary, review) for row, summary, review in frame.select("row", "summary", "review").iter_rows()}

    def _items(self, ids: pl.Series) -> dict[str, Item]:
        wanted = ids.to_frame("item_id").lazy()
        frame = self._collect(self._scan("items").join(wanted, on="item_id", how="semi"))
        return {
            item: Item(title, tuple(categories), creator, price, description)
            for item, title, categories, creator, price, description in frame.select(*ITEMS).iter_rows()
        }

    def _collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect()
        except (OSError, pl.exceptions.ComputeError) as error:
            raise UserError(f"{self.path}: damaged ({_first_line(error)}); prepare the data set again.") from error

    def statistics(self) -> dict[str, Any]:
        """What `reczero data show` prints: the counts, density, the ratings histogram, and a row for each split.

        `splits` holds, per split: rows, cold_start, first and last (Unix seconds), rating (mean), and of the counts of
        earlier ratings (`user_count`, `item_count`) and of shown rows (`shown`) the median.
        """
        counts = self.info["counts"]
        ratings = self._scan("interactions").group_by("rating").len().sort("rating")
        shown = pl.col("user_history").list.len() + pl.col("item_history").list.len()
        splits = (
            self._scan("examples")
            .group_by("split")
            .agg(
                pl.len().alias("rows"),
                pl.col("cold_start").sum(),
                pl.col("timestamp").min().alias("first"),
                pl.col("timestamp").max().alias("last"),
                pl.col("rating").mean(),
                pl.col("user_count").median(),
                pl.col("item_count").median(),
                shown.median().alias("shown"),
            )
        )
        by_split = {row.pop("split"): row for row in self._collect(splits).to_dicts()}
        return {
            "counts": counts,
            "density": counts["interactions"] / (counts["users"] * counts["items"]),
            "ratings": dict(self._collect(ratings).iter_rows()),
            "splits": {split: by_split[split] for split in SPLITS if split in by_split},
        }


def spread(examples: pl.DataFrame, n: int) -> pl.DataFrame:
    """`n` rows spread evenly over the time-sorted rows, always the same ones; all rows if there are at most `n`."""
    if n < 0:
        raise ValueError(f"cannot choose {n} rows")
    ordered = examples.sort("timestamp", "example_id")
    if n >= ordered.height:
        return ordered
    # The middle of each of n equal stretches: in whole numbers, so that no two fall together.
    return ordered[(2 * np.arange(n) + 1) * ordered.height // (2 * n)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
