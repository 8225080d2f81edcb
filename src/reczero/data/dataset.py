"""A prepared folder, opened: examples as tables, contexts with their texts joined, and what can be said of it all."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reczero.errors import UserError
from reczero.files import read_json, sha256
from reczero.reasoning import Context, Fact, HistoryEntry, Item, Opinion, Scale

from .splits import SPLITS
from .standing import Standings
from .tables import INTERACTIONS, ITEMS

FORMAT = 2
FILES = ("interactions.parquet", "items.parquet", "examples.parquet")
QUARANTINE = "quarantine.jsonl"
Split = Literal["train", "validation", "test"]


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

    def examples(
        self,
        split: Split | None = None,
        cold_start: bool | None = False,
        *,
        where: pl.Expr | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Examples (columns as in `EXAMPLES`) in order of time, of one split or of all.

        cold_start: False leaves out rows with too little context, True gives only those, None gives both. where: only
        rows for which it holds (not about histories). limit: only so many rows, spread evenly over time, always the
        same. columns: only these. Without histories, or with a limit, millions of examples take little memory.
        """
        slim = self._scan("examples")
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"split {split!r} is none of {SPLITS}")
            slim = slim.filter(pl.col("split") == split)
        if cold_start is not None:
            slim = slim.filter(pl.col("cold_start") == cold_start)
        if where is not None:
            slim = slim.filter(where)
        if limit is None:
            return self._collect(slim.select(columns or list(EXAMPLES)))
        # Chosen on a few columns; the histories are then read for the chosen rows only.
        numbered = self._scan("examples").with_row_index("row_number")
        ids = self._collect(slim.select("example_id", "timestamp"))
        chosen = spread(ids, limit)
        places = self._collect(
            numbered.select("row_number", "example_id").join(chosen.lazy(), on="example_id", how="semi")
        )
        return self._rows("examples", places["row_number"], columns or list(EXAMPLES))

    def places(self, split: Split | None = None) -> np.ndarray:
        """(rows,) int64: where in examples.parquet the rows of a split stand, cold starts too; 8 bytes a row."""
        numbered = self._scan("examples").select("split").with_row_index("row_number")
        chosen = numbered if split is None else numbered.filter(pl.col("split") == split)
        return self._collect(chosen.select("row_number")).to_series().cast(pl.Int64).to_numpy()

    def at(self, places: np.ndarray) -> pl.DataFrame:
        """The examples at these places, ascending, with all columns."""
        return self._rows("examples", pl.Series(places), list(EXAMPLES))

    def interactions(self, columns: Sequence[str]) -> pl.DataFrame:
        """All kept rows by (time, user, item), only these columns."""
        return self._collect(self._scan("interactions").select(columns))

    def items(self, columns: Sequence[str]) -> pl.DataFrame:
        """All items, only these columns."""
        return self._collect(self._scan("items").select(columns))

    def example(self, example_id: str) -> pl.DataFrame:
        """The one example of that id, as a table of one row."""
        numbered = self._scan("examples").select("example_id").with_row_index("row_number")
        place = self._collect(numbered.filter(pl.col("example_id") == example_id))["row_number"]
        if place.is_empty():
            one = self._collect(self._scan("examples").select("example_id").head(1)).item()
            raise UserError(f"{self.path}: no example {example_id!r}; ids are USER:ITEM, such as {one!r}.")
        return self._rows("examples", place, list(EXAMPLES))

    def _rows(self, name: str, rows: pl.Series, columns: Sequence[str]) -> pl.DataFrame:
        """These rows (numbers from 0) of a file, ascending. Only row groups that hold any are read, one at a time."""
        wanted = np.unique(rows.to_numpy())
        try:
            with pq.ParquetFile(self.path / f"{name}.parquet") as file:
                groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
                begins = np.concatenate([[0], np.cumsum(groups)])
                parts = [file.schema_arrow.empty_table().select(list(columns))]
                for group in np.unique(np.searchsorted(begins, wanted, side="right") - 1):
                    inside = wanted[(wanted >= begins[group]) & (wanted < begins[group + 1])] - begins[group]
                    parts.append(file.read_row_group(int(group), columns=list(columns)).take(pa.array(inside)))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path}: damaged ({_first_line(error)}); prepare the data set again.") from error
        return pl.DataFrame(pl.from_arrow(pa.concat_tables(parts)))

    def contexts(self, examples: pl.DataFrame, facts: Sequence[Fact] = ()) -> list[Context]:
        """The context of each row of `examples`, in their order: the only place where texts join the references.

        facts: those that the template shows; with any, the contexts have a standing. The target's own rating and texts
        are not looked at. Entries that several contexts share are made once.
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
        made = [
            Context(items[item], tuple(rated[r] for r in by_user), tuple(opinions[r] for r in by_item), *known)
            for (item, *known), by_user, by_item in zip(plain, rows("user_history"), rows("item_history"), strict=True)
        ]
        if not facts:
            return made
        standings = self.standings.of(examples, facts)
        return [replace(context, standing=one) for context, one in zip(made, standings, strict=True)]

    @cached_property
    def standings(self) -> Standings:
        """The numbers behind facts, worked out where a prompt shows them and never stored."""
        return Standings(self)

    def _texts(self, rows: pl.Series) -> dict[int, tuple[str | None, str | None]]:
        """(summary, review) of these interactions, by their row; nothing where no interaction has any."""
        if not self.info["counts"]["texts"]:
            return {}
        wanted = rows.unique().sort()
        frame = self._rows("interactions", wanted, ("summary", "review"))
        return dict(zip(wanted, frame.iter_rows(), strict=True))

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
        history = self.info["settings"]["history"]
        shown = pl.min_horizontal("user_count", history) + pl.min_horizontal("item_count", history)
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
