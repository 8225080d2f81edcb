"""Rows with long texts, put aside on disk while they are read and brought back in another order, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 20_000  # rows in a Parquet row group with texts, at most: what is read at a time when a prompt is made
GROUP_BYTES = 16 << 20  # texts in a row group, about
PART_BYTES, PARTS = 64 << 20, 256  # texts that are sorted in memory at a time, about; and files open at once, at most

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made in a thread of its own while the one before it is used: two cores work, not one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def write_tables(path: Path, tables: Iterable[pa.Table], rows: int, report: Callable[[int], None]) -> None:
    """A Parquet file of `tables`, at least one, in row groups of `rows`. report: told how many rows are written."""
    writer: pq.ParquetWriter | None = None
    written = 0
    try:
        for table in ahead(tables):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=rows)
            written += table.num_rows
            report(written)
    finally:
        if writer is not None:
            writer.close()


class Staging:
    """A Parquet file that is written batch by batch in the order of reading, then read in another order.

    Sorted in two passes over the disk (a distribution sort): rows go to as many files as it takes for each to fit into
    memory, each of which holds a stretch of the new order; then one file after the other is sorted.
    """

    def __init__(self, path: Path, schema: dict[str, pl.DataType]) -> None:
        self._path = path
        self._files = [path]
        self._schema = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="lz4", use_dictionary=False)
        self.rows = self.bytes = 0

    @classmethod
    def joined(cls, files: list[Path], path: Path, rows: int, size: int) -> "Staging":
        """What others staged and closed, one after the other, with so many rows and bytes of text in all; `path` is a
        free name to sort beside."""
        new = cls.__new__(cls)
        new._path, new._files, new.rows, new.bytes = path, files, rows, size
        new._schema = pq.read_schema(files[0])
        return new

    def add(self, batch: pl.DataFrame) -> None:
        table = batch.select(self._schema.names).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._writer.write_table(table.cast(self._schema))
        self.rows += batch.height
        # Of the texts themselves, so that the sum is the same in whatever order they came.
        self.bytes += sum(batch.select(pl.col(pl.String).str.len_bytes().sum()).row(0))

    def close(self) -> None:
        self._writer.close()

    @property
    def rows_at_once(self) -> int:
        """How many rows of this length to hold at a time, and to put into a Parquet row group."""
        return max(100, min(ROWS, GROUP_BYTES * self.rows // max(self.bytes, 1)))

    def ordered(self, position: np.ndarray, size: int) -> Iterator[pa.Table]:
        """Tables of `size` rows (the last may have fewer): the row staged n-th comes at `position[n]`, or not if < 0.

        position: distinct numbers from 0 without gaps, and negative ones.
        """
        kept = int((position >= 0).sum())
        parts = min(PARTS, 1 + self.bytes // PART_BYTES)
        folder = self._path.with_name(f"{self._path.name}.parts")
        folder.mkdir()
        files = [folder / str(part) for part in range(parts)]
        self._distribute(position, kept, files)
        yield from _resliced(map(_sorted_part, files), size)

    def _batches(self) -> Iterator[pa.Table]:
        """As they were added; iter_batches would hold on to far more memory."""
        for file in self._files:
            with pq.ParquetFile(file) as staged:
                yield from map(staged.read_row_group, range(staged.num_row_groups))

    def _distribute(self, position: np.ndarray, kept: int, files: list[Path]) -> None:
        """Writes every kept row, with its place, into the file of its stretch of places."""
        schema = self._schema.append(pa.field("place", pa.int64()))
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with ExitStack() as open_files:
            streams = (pa.ipc.new_stream(str(file), schema, options=options) for file in files)
            writers = [open_files.enter_context(stream) for stream in streams]
            begin = 0
            for batch in self._batches():
                at = position[begin : begin + batch.num_rows]
                begin += batch.num_rows
                part = at * len(files) // max(kept, 1)  # negative for rows that are not kept
                order = np.argsort(part, kind="stable")
                moved = batch.append_column("place", pa.array(at)).take(pa.array(order))
                ends = np.searchsorted(part[order], np.arange(len(files) + 1), side="left")
                for number in np.flatnonzero(np.diff(ends)):
                    writers[number].write_table(moved.slice(ends[number], ends[number + 1] - ends[number]))


def _sorted_part(file: Path) -> pa.Table:
    with pa.ipc.open_stream(str(file)) as stream:
        table = stream.read_all()
    file.unlink()
    places = table["place"].to_numpy()
    return table.drop_columns("place").take(pa.array(np.argsort(places)))


def _resliced(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows, in tables of exactly `size`, so that equal rows make equal files."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        while table.num_rows:
            part = table.slice(0, size - rows)
            held.append(part)
            rows += part.num_rows
            table = table.slice(part.num_rows)
            if rows == size:
                yield pa.concat_tables(held)
                held, rows = [], 0
    if held:
        yield pa.concat_tables(held)
