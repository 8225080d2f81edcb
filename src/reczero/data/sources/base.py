"""What a data source is. A new one is a file in this folder with a subclass, and its place in `SOURCES`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import polars as pl

from reczero.errors import UserError

from ..raw import Layout, Quarantine, RawFile, Report, column_names, listed, read_columns, silent
from ..tables import Clock, ScaleRule

NEEDED = ("user_id", "item_id", "rating", "timestamp")
NO_ITEMS = "no item table: items are called by their ids (add --items FILE)"
ITEM_COLUMNS = ("title", "categories", "creator", "price", "description")


@dataclass(frozen=True)
class Given:
    """The files to read, on this machine, and what the user said of them.

    `columns`: our name -> theirs, where the user settled it; `scale` MIN-MAX[:STEP]; `time_format` as in `Clock`.
    """

    reviews: Path
    items: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    scale: str | None = None
    encoding: str = "utf-8"
    time_format: str | None = None


@dataclass(frozen=True)
class Raw:
    """A data set as its publisher ships it, under our column names, not yet typed, sorted or split; read when iterated.

    `items` never holds what publishers compute over all time (star averages, review counts): it would leak the future.
    `reviews` and `item_file` are the files that the rows come from, with one quarantine. `found`: what was guessed or
    found in them, to be shown. `timed`: whether the rows have times at all. `unescape`: whether texts hold `&amp;` and
    its like. `items_vary`: False where two rows of one item must agree, since a later one would leak.
    """

    interactions: Iterable[pl.DataFrame]
    items: Iterable[pl.DataFrame]
    reviews: RawFile
    item_file: RawFile
    scale: ScaleRule
    clock: Clock
    found: dict[str, str]
    timed: bool = True
    unescape: bool = False
    items_vary: bool = True


class Source(ABC):
    """How to read one publisher's files."""

    name: ClassVar[str]
    title: ClassVar[str]
    reviews: ClassVar[str]  # what `--reviews` takes, in words
    items: ClassVar[str]
    scale: ClassVar[str]

    def files(self, given: Given) -> list[Path]:
        """What `read` reads."""
        return [path for path in (given.reviews, given.items) if path is not None]

    @abstractmethod
    def read(self, given: Given, report: Report = silent) -> Raw:
        """The data set from its files. Raises UserError when they are not in a known layout."""


class Fixed(Source):
    """A publisher whose columns always have the same names."""

    review_columns: ClassVar[dict[str, str]]
    item_columns: ClassVar[dict[str, str]]
    time_format: ClassVar[str | None] = "s"
    literal: ClassVar[bool] = False
    unescape: ClassVar[bool] = False

    def read(self, given: Given, report: Report = silent) -> Raw:
        if given.columns:
            raise UserError(f"--columns: the columns of {self.name} are known; for other tables take --source table.")
        quarantine = Quarantine()
        reviews = RawFile(given.reviews, "interactions", quarantine, report, (), given.encoding)
        file = RawFile(given.items or Path(), "items", quarantine, report, (), given.encoding)
        expect(self, reviews, [self.review_columns[name] for name in NEEDED])
        interactions = read_columns(reviews, self.review_columns, None, self.literal)
        items: Iterable[pl.DataFrame] = ()
        if given.items is not None:
            expect(self, file, [self.item_columns[name] for name in ("item_id", "title")])
            own = {self.review_columns[name] for name in ("user_id", "rating")}
            if own <= set(column_names(file)):  # a review's headline would pass for the item's title
                raise UserError(f"{file.path}: holds reviews, not items of {self.name}; give its file of items.")
            items = map(self.item_batch, read_columns(file, self.item_columns, None, self.literal))
        rule = ScaleRule.parse(given.scale or self.scale)
        clock = Clock(given.time_format or self.time_format)
        found = {} if given.items else {"items": NO_ITEMS}
        return Raw(interactions, items, reviews, file, rule, clock, found, unescape=self.unescape)

    def item_batch(self, raw: pl.DataFrame) -> pl.DataFrame:
        return raw


def expect(source: Source, file: RawFile, needed: Iterable[str], layout: Layout | None = None) -> None:
    """UserError, naming all that are missing, where a file lacks columns that its publisher always has."""
    there = column_names(file, layout)
    if missing := [name for name in needed if name not in there]:
        raise UserError(
            f"{file.path}: not {file.table} of {source.name}: no {', '.join(missing)}; "
            f"there are {listed(there) or 'no keys'}. See `reczero data list` for the sources."
        )


__all__ = ["ITEM_COLUMNS", "NEEDED", "NO_ITEMS", "Fixed", "Given", "Raw", "Source", "expect"]
