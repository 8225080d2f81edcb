"""Rows with long texts, put aside on disk while they are read and brought back in another order, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

SORT_MEMORY = "1GB"  # what the sort may hold; the rest of it goes to disk

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
    """A Parquet file that is written batch by batch in the order of reading, then read in another order."""

    def __init__(self, path: Path, schema: dict[str, pl.DataType]) -> None:
        self._path = path
        self._schema = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="lz4", use_dictionary=False)

    def add(self, batch: pl.DataFrame) -> None:
        table = batch.select(self._schema.names).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._writer.write_table(table.cast(self._schema))

    def close(self) -> None:
        self._writer.close()

    def ordered(self, position: np.ndarray, size: int) -> Iterator[pa.Table]:
        """Tables of `size` rows (the last may have fewer): the row staged n-th comes at `position[n]`, or not if < 0.

        DuckDB sorts, since it is made for sorting what does not fit into memory.
        """
        import duckdb

        place = pa.field("place", pa.int64())

        def placed() -> Iterator[pa.RecordBatch]:
            begin = 0
            for batch in pq.ParquetFile(self._path).iter_batches(10_000):
                at = position[begin : begin + batch.num_rows]
                begin += batch.num_rows
                if not (at < 0).all():
                    whole = batch.append_column(place, pa.array(at, pa.int64()))
                    yield whole if (at >= 0).all() else whole.filter(pa.array(at >= 0))

        settings: dict[str, Any] = {"memory_limit": SORT_MEMORY, "temp_directory": f"{self._path}.sort"}
        settings |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}  # no network, ever
        connection = duckdb.connect(config=settings)
        try:
            reader: Any = pa.RecordBatchReader.from_batches(self._schema.append(place), placed())
            connection.register("staged", reader)
            columns = ", ".join(f'"{name}"' for name in self._schema.names)
            result = connection.sql(f"SELECT {columns} FROM staged ORDER BY place").to_arrow_reader(size)
            yield from _resliced((pa.table(batch).cast(self._schema) for batch in result), size)
        finally:
            connection.close()


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
