"""Times, scales, labels and guesses, by hand."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from reczero.data.raw import RawFile
from reczero.data.sources.table import USUAL, _guess
from reczero.data.tables import Clock, ScaleRule, labels, text_of
from reczero.errors import UserError
from reczero.reasoning import Scale

MOMENT = datetime(2018, 7, 7, 22, 9, 11, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())
DAY = int(datetime(2018, 7, 7, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("times", "seconds", "found"),
    [
        ([SECONDS, None], [SECONDS, None], "Unix seconds"),
        ([str(SECONDS), " ", "soon"], [SECONDS, None, None], "Unix seconds"),
        ([SECONDS * 1000 + 999], [SECONDS], "Unix milliseconds"),
        ([SECONDS * 10**6, SECONDS * 10**6 - 1, 5], [SECONDS, SECONDS - 1, None], "Unix microseconds"),
        ([SECONDS * 10**9 + 1], [SECONDS], "Unix nanoseconds"),
        (
            [SECONDS + 0.75, SECONDS, float("nan"), float("inf"), 1e300],
            [SECONDS, SECONDS, None, None, None],
            "Unix seconds",
        ),
        ([f"{SECONDS}.0", f"{SECONDS}e0"], [SECONDS, SECONDS], "Unix seconds"),
        (["2018-07-07 22:09:11", "2018-07-07"], [SECONDS, DAY], "dates"),
        (["2018-07-07T22:09:11.250", "2018-07-07T22:09:11Z"], [SECONDS, SECONDS], "dates"),
        (["2018-07-08T00:09:11+02:00", "2018/07/07"], [SECONDS, DAY], "dates"),
        (["7 July 2018", "07 Jul 2018", "July 7, 2018", "07 7, 2018"], [DAY] * 4, "dates"),
        (["07/08/2018", "18-07-07", "31 June 2018", "2018-07-07 or so"], [None] * 4, "dates"),  # never guessed
        ([20180707, 20180708], [DAY, DAY + 86400], "dates as %Y%m%d"),
        ([MOMENT], [SECONDS], "dates"),
        ([date(2018, 7, 7)], [DAY], "dates"),
        ([True, False], [None, None], None),
    ],
)
def test_times_of_every_kind_become_seconds(times: list[object], seconds: list[int | None], found: str | None) -> None:
    clock = Clock()
    assert clock.seconds(pl.Series("timestamp", times)).to_list() == seconds
    assert found is None or clock.found == found


def test_a_unit_that_is_asked_for_or_was_found_holds() -> None:
    assert Clock("s").seconds(pl.Series([10**12])).to_list() == [10**12 if 10**12 <= 253_402_300_799 else None]
    assert Clock("ms").seconds(pl.Series([1500])).to_list() == [1]
    assert Clock("%d/%m/%Y").seconds(pl.Series(["07/08/2018", "13/13/2018"])).to_list() == [DAY + 31 * 86400, None]
    clock = Clock()
    clock.seconds(pl.Series([SECONDS * 1000]))
    # A later batch alone would look like seconds; a stray number of another unit is not of our time.
    assert clock.seconds(pl.Series([SECONDS, SECONDS * 1000])).to_list() == [None, SECONDS]


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [
        ([1, 5, 3], Scale(1, 5, 1)),
        ([2, 4], Scale(1, 5, 1)),
        ([4.5, 3], Scale(1, 5, 0.5)),
        ([0.5, 5], Scale(0.5, 5, 0.5)),
        ([0, 1], Scale(0, 1, 1)),
        ([1, 1], Scale(1, 5, 1)),
        ([-2, 2], Scale(-2, 2, 1)),
        ([0, 5], Scale(0, 5, 1)),
        ([8, 3], Scale(1, 10, 1)),
        ([0, 10], Scale(0, 10, 1)),
        ([-8.3, 10], Scale(-10, 10, 0.1)),
        ([87, 1], Scale(1, 100, 1)),
        ([3.337, 2], Scale(1, 5, 0.01)),
    ],
)
def test_the_narrowest_usual_scale_that_holds_all_ratings(ratings: list[float], scale: Scale) -> None:
    assert ScaleRule().settle(pl.Series(ratings, dtype=pl.Float64)) == scale


def test_scales_that_are_named() -> None:
    ratings = pl.Series([1.0, 4.5])
    assert ScaleRule.parse("0-5").settle(ratings) == Scale(0, 5, 0.5)
    assert ScaleRule.parse("0-5:0.25").settle(ratings) == Scale(0, 5, 0.25)
    assert ScaleRule.parse("-1-1:0.5").settle(pl.Series([0.5])) == Scale(-1, 1, 0.5)
    for wrong in ("5", "5-1", "1-5:0", "1-5:9", "a-b", "", "1 to 5", "1-5:0.3"):
        with pytest.raises(UserError, match="not a rating scale"):
            ScaleRule.parse(wrong)
    with pytest.raises(UserError, match=r"run from -999 to 5, .*--scale"):
        ScaleRule().settle(pl.Series([-999.0, 5.0]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Drama|Film-Noir", ["Drama", "Film-Noir"]),
        ("Food, Bars , Food", ["Food", "Bars"]),
        ([["Books", "Crime, True"], ["Books", " "]], ["Books", "Crime, True"]),
        (None, []),
        ("", []),
        (7.0, ["7"]),
    ],
)
def test_labels(value: object, expected: list[str]) -> None:
    assert labels(value) == expected


def test_values_as_text() -> None:
    assert [text_of(v) for v in (12.0, 9.5, "x", None, 3, ["a", None, " ", "b"], float("nan"))] == [
        "12", "9.5", "x", None, "3", "a b", None
    ]  # fmt: skip


def test_columns_are_guessed_by_their_usual_names() -> None:
    def guess(*there: str, **asked: str) -> dict[str, str]:
        return _guess(there, USUAL, asked, RawFile(Path("x.csv")))

    assert guess("userId", "movieId", "rating", "timestamp") == {
        "user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"
    }  # fmt: skip
    assert guess("Reviewer Name", "reviewer", "film", "STARS", "review_date:token", "text") == {
        "user_id": "reviewer", "item_id": "film", "rating": "STARS", "timestamp": "review_date:token", "review": "text"
    }  # fmt: skip
    assert guess("asin", "parent_asin", "user")["item_id"] == "parent_asin"
    # What is asked for is not given to another column.
    assert guess("user", "customer", "item", item_id="user") == {"user_id": "customer", "item_id": "user"}
    with pytest.raises(UserError, match="no such column: user=who; there are a, b"):
        guess("a", "b", user_id="who")
