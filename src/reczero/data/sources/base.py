"""What a data source is. A new one is a file in this folder with a subclass, and its place in `SOURCES`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

import polars as pl

from reczero.reasoning import Scale


class Raw(NamedTuple):
    """A data set as its publisher ships it, in our column names, not yet sorted or split.

    `interactions`: user_id, item_id (str), rating (float), timestamp (Unix seconds), optional review, summary (str).
    `items`: item_id, title (str), optional categories (list of str), creator, price, description (str). Never anything
    that publishers compute over all time (star averages, review counts): it would leak the future.
    `inputs`: SHA-256 of every file that was read, by name.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    scale: Scale
    inputs: dict[str, str]


class Source(ABC):
    """How to get and read one data set."""

    name: ClassVar[str]
    title: ClassVar[str]
    home: ClassVar[str]
    size: ClassVar[str]
    scale: ClassVar[Scale]
    licence: ClassVar[str]
    how_to_get: ClassVar[str]

    @abstractmethod
    def fetch(self, cache: Path, archive: str | None = None) -> Path:
        """Bring the files to `cache` unless they are there, and return what `read` takes.

        `archive` is a local path or a URL of the publisher's own archive; None takes the default way.
        Raises UserError when nothing could be had, with what to do.
        """

    @abstractmethod
    def read(self, path: Path) -> Raw:
        """The data set from a file or folder; UserError, with file and line, when it is not in a known layout."""
