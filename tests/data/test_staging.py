"""Texts come back in the order asked for, however many files it takes to sort them."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from reczero.data import staging
from reczero.data.staging import Staging, ahead
from reczero.data.tables import ITEMS


@pytest.mark.parametrize("part_bytes", [1 << 30, 2000, 1])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_rows_come_in_the_order_of_their_places(
    part_bytes: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", part_bytes)
    draw = np.random.default_rng(size)
    staged = Staging(tmp_path / "staged", ITEMS)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(500)],
            "title": [None if n % 9 == 0 else "é" * int(draw.integers(0, 90)) for n in range(500)],
            "categories": [["a"] * (n % 3) for n in range(500)],
            "creator": [None] * 500,
            "price": ["1"] * 500,
            "description": ["x" * n for n in range(500)],
        },
        schema=ITEMS,
    )
    for begin in range(0, 500, 60):
        staged.add(frame[begin : begin + 60])
    staged.close()
    kept = draw.permutation(500)[:400]
    position = np.full(500, -1)
    position[kept] = np.arange(400)
    tables = list(staged.ordered(position, size))
    assert [table.num_rows for table in tables[:-1]] == [size] * (len(tables) - 1)
    assert pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).cast(pl.Schema(ITEMS)).equals(frame[kept])


def test_row_groups_hold_fewer_rows_of_longer_texts(tmp_path: Path) -> None:
    sizes = []
    for length in (10, 10_000, 10_000_000):
        staged = Staging(tmp_path / str(length), {"review": pl.String()})
        staged.add(pl.DataFrame({"review": ["x" * length]}))
        staged.close()
        sizes.append(staged.rows_at_once)
    assert sizes == [staging.ROWS, staging.GROUP_BYTES // 10_000, 100]


def test_what_goes_wrong_ahead_is_raised_where_it_is_used() -> None:
    def items():
        yield 1
        raise OSError("no space")

    made = ahead(items())
    assert next(made) == 1
    with pytest.raises(OSError, match="no space"):
        next(made)
    assert list(ahead(range(3))) == [0, 1, 2] and list(ahead([])) == []
